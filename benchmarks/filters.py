"""MB/s of every filter family on one core, and how far the rules agree with datatrove's on the same documents.

    python benchmarks/filters.py FOLDER [--mb 6] [--reference PYTHON] [--json FILE]

FOLDER holds NAME/docs.jsonl.zst as in the shared data. Each set gives its first `--mb` MB, in pieces of at most 50,000
characters. Times are CPU seconds of this process (`process_time`), models loaded before. `--reference` is a Python
with datatrove 0.10.1, nltk and spacy (a throw-away environment): it judges the same English pieces with
GopherRepetitionFilter, GopherQualityFilter, C4QualityFilter (thresholds of the published code) and
FineWebQualityFilter, one by one, and the table says how many documents each side drops and how many both do. The two
Gopher filters judge a second time with words split at white space instead of spaCy's tokens: what remains different
then is not the definition of a word.
"""

import argparse
import json
import platform
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from isoflop.corpus.document import SourceOptions
from isoflop.corpus.filter.c4 import C4Options, c4
from isoflop.corpus.filter.code import CodeOptions, code
from isoflop.corpus.filter.fineweb import FinewebOptions, fineweb
from isoflop.corpus.filter.gopher import (
    GopherQualityOptions,
    GopherRepetitionOptions,
    gopher_quality,
    gopher_repetition,
)
from isoflop.corpus.filter.language import detect
from isoflop.corpus.filter.perplexity import perplexities, train_ngrams
from isoflop.corpus.filter.privacy import PrivacyOptions, mask_personal
from isoflop.corpus.filter.quality import blocks_of, train_classifier
from isoflop.corpus.filter.rules import BLOCK_CHARS
from isoflop.corpus.filter.text_block import TextBlock
from isoflop.corpus.filter.toxicity import ToxicityOptions, load_lexicon, toxicity
from isoflop.corpus.read.sources import read_file
from isoflop.recipe import write_json

ENGLISH = ("gutenberg_en", "openstax_en", "openstax_math", "math_latex", "misc_en")
PIECE_CHARS = 50_000

REFERENCE = """
import json, sys
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter)
filters = {
    "gopher_repetition": GopherRepetitionFilter(),
    "gopher_quality": GopherQualityFilter(),
    "c4": C4QualityFilter(min_num_sentences=3, min_words_per_line=5),
    "fineweb": FineWebQualityFilter(),
}
import time
from datatrove.pipeline.filters import gopher_quality_filter, gopher_repetition_filter
out, seconds = {}, {}
texts = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
for name in [*filters, "gopher_repetition by white space", "gopher_quality by white space"]:
    if name.endswith("space"):
        chosen = filters[name.split()[0]]
        for module in (gopher_quality_filter, gopher_repetition_filter):
            module.split_into_words = lambda text, language: text.split()
    else:
        chosen = filters[name]
    started = time.process_time()
    out[name] = []
    for index, text in enumerate(texts):
        found = chosen.filter(Document(text=text, id=str(index)))
        keep, why = found if isinstance(found, tuple) else (found, "")
        out[name].append("" if keep else why or "dropped")
    seconds[name] = time.process_time() - started
json.dump({"rules": out, "seconds": seconds}, open(sys.argv[2], "w"))
"""


def load(folder: Path, megabytes: float) -> dict[str, list[str]]:
    sets = {}
    for path in sorted(folder.glob("*/docs.jsonl.zst")):
        pieces, size = [], 0
        for document in read_file(path, path.name, SourceOptions(path=str(path)), lambda bad: None):
            for at in range(0, len(document.text), PIECE_CHARS):
                pieces.append(document.text[at : at + PIECE_CHARS])
                size += len(pieces[-1].encode())
            if size > megabytes * 1e6:
                break
        sets[path.parent.name] = pieces
    return sets


def measure(texts: list[str], lang: str, model, classifier, lexicon) -> dict[str, float]:
    """CPU seconds by family on shared arrays, as the filter stage runs them; "all": every family but the language."""
    spent: dict[str, float] = defaultdict(float)
    origins = [""] * len(texts)
    families = {
        "arrays": lambda b: (b.tokens, b.chunks, b.lines, b.paragraphs, b.token_hashes, b.is_word),
        "gopher_quality": lambda b: gopher_quality(b, GopherQualityOptions(), lang),
        "gopher_repetition": lambda b: gopher_repetition(b, GopherRepetitionOptions()),
        "fineweb": lambda b: fineweb(b, FinewebOptions()),
        "c4": lambda b: c4(b, C4Options()),
        "code": lambda b: code(b, origins[: b.n_docs], CodeOptions()),
        "perplexity": lambda b: perplexities(model, b),
        "quality": lambda b: classifier.scores(b),
        "toxicity": lambda b: toxicity(b, lexicon, ToxicityOptions()),
        "privacy": lambda b: [mask_personal(text, PrivacyOptions()) for text in b.texts],
        "language": lambda b: detect(b.texts),
    }
    for block in blocks_of(texts, BLOCK_CHARS):
        for name, family in families.items():
            started = time.process_time()
            family(block)
            spent[name] += time.process_time() - started
    spent["all"] = sum(value for name, value in spent.items() if name != "language")
    return spent


def ours(texts: list[str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = defaultdict(list)
    for block in blocks_of(texts, BLOCK_CHARS):
        for name, findings in {
            "gopher_repetition": gopher_repetition(block, GopherRepetitionOptions()),
            "gopher_quality": gopher_quality(block, GopherQualityOptions(), "en"),
            "c4": c4(block, C4Options())[0],
            "fineweb": fineweb(block, FinewebOptions()),
        }.items():
            for doc in range(block.n_docs):
                out[name].append(next((finding.rule for finding in findings if finding.drop[doc]), ""))
    return out


def compare(texts: list[str], python: str) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "texts.jsonl", Path(folder) / "rules.json"
        source.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
        subprocess.run([python, "-c", REFERENCE, str(source), str(result)], check=True)
        found = json.loads(result.read_text(encoding="utf-8"))
    started = time.process_time()
    mine = ours(texts)
    seconds = time.process_time() - started
    table = {}
    for name, theirs in found["rules"].items():
        own = mine[name.split()[0]]
        a, b = np.array([bool(rule) for rule in own]), np.array([bool(rule) for rule in theirs])
        differs = [(x, y) for x, y in zip(own, theirs) if bool(x) != bool(y)]
        table[name] = {
            "documents": len(texts),
            "ours": int(a.sum()),
            "datatrove": int(b.sum()),
            "both": int((a & b).sum()),
            "agreement": float((a == b).mean()),
            "datatrove_s": found["seconds"][name],
            "differ": [list(item) for item in differs],
        }
    table["seconds"] = {"ours": seconds, "datatrove": sum(found["seconds"][name] for name in mine)}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mb", type=float, default=6.0)
    parser.add_argument("--reference", help="Python of an environment with datatrove")
    parser.add_argument("--documents", type=int, default=400, help="pieces per set that datatrove judges")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sets = load(options.folder, options.mb)
    warm = TextBlock(["warm"])
    detect(warm.texts)
    lexicon = load_lexicon([])
    record: dict = {"processor": platform.processor() or platform.machine(), "mb_per_s": {}, "agreement": {}}
    for name, texts in sets.items():
        lang = "en" if name in ENGLISH else "zh"
        model = train_ngrams(blocks_of(texts[: len(texts) // 2 + 1]))
        other = sets["wiki_zh" if name != "wiki_zh" else "laws_zh"]
        classifier = train_classifier(texts[:200], other[:200])
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        spent = measure(texts, lang, model, classifier, lexicon)
        record["mb_per_s"][name] = {family: megabytes / seconds for family, seconds in spent.items()}
        shown = "  ".join(f"{family} {megabytes / seconds:.1f}" for family, seconds in spent.items())
        print(f"{name:20} {megabytes:5.1f} MB  MB/s: {shown}", flush=True)
    if options.reference:
        texts = [text for name in ENGLISH for text in sets.get(name, [])[: options.documents]]
        record["agreement"] = compare(texts, options.reference)
        for name, row in record["agreement"].items():
            print(name, {key: value for key, value in row.items() if key != "differ"}, flush=True)
    if options.json:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
