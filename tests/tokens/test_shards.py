import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from places import ROOT

from isoflop.corpus.read.sources import read_texts
from isoflop.corpus.tables.output_folder import read_manifest
from isoflop.errors import DataError
from isoflop.recipe import load_recipe, write_json
from isoflop.tokens import shards
from isoflop.tokens.bpe import Tokenizer
from isoflop.tokens.shards import Shard, TokenizerOptions, TokenSet, TokensRecipe, build_tokens, with_padding


def test_shards_hold_each_document_between_bos_and_eos(token_set: TokenSet, small_corpus: Path) -> None:
    tokenizer = token_set.tokenizer
    for shard in token_set.shards:
        tokens = token_set.tokens(shard.split, shard.domain)
        starts = np.flatnonzero(tokens == tokenizer.bos_id)
        ends = np.flatnonzero(tokens == tokenizer.eos_id)
        texts = list(read_texts(small_corpus / shard.split / f"{shard.domain}.jsonl.zst"))
        assert [tokenizer.decode(tokens[a + 1 : b]) for a, b in zip(starts, ends)] == texts
        assert (shard.n_documents, shard.n_tokens) == (len(texts), len(tokens))
        assert shard.n_bytes == sum(len(text.encode()) for text in texts)


def test_result_does_not_depend_on_the_number_of_processes(
    small_corpus: Path,
    tokens_folder: Path,
    tokens_recipe: TokensRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "CHUNK_CHARS", 3000)  # many chunks, in turns of two processes
    recipe = TokensRecipe(tokens_recipe.tokenizer, workers=2)
    expected = json.loads((tokens_folder / "manifest.json").read_text(encoding="utf-8"))
    calls = []
    found = build_tokens(small_corpus, tmp_path / "out", recipe, on_progress=lambda *call: calls.append(call))
    assert (found["data_sha256"], found["shards"]) == (expected["data_sha256"], expected["shards"])
    for shard in (Shard(**item) for item in found["shards"]):
        n_special = 2 * shard.n_documents
        assert found["compression"][f"{shard.split} {shard.domain}"] == shard.n_bytes / (shard.n_tokens - n_special)
    assert calls[-1][1] == calls[-1][2] == sum(shard["n_bytes"] for shard in expected["shards"])


def test_second_run_is_a_no_op_and_other_options_build_again(
    small_corpus: Path, tokens_recipe: TokensRecipe, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert not build_tokens(small_corpus, out, tokens_recipe)["reused"]
    before = (out / "train.prose.bin").stat().st_mtime_ns
    assert build_tokens(small_corpus, out, tokens_recipe)["reused"]
    assert (out / "train.prose.bin").stat().st_mtime_ns == before
    other = TokensRecipe(TokenizerOptions(vocab_size=280, n_reserved=0, padded_vocab_size=0))
    assert build_tokens(small_corpus, out, other)["vocab_size"] == 320


def test_the_hash_of_the_held_out_text_depends_on_that_text_alone(small_corpus: Path, tmp_path: Path) -> None:
    def tokens_of(corpus: Path, name: str, vocab_size: int = 300) -> tuple[str, str]:
        options = TokenizerOptions(vocab_size=vocab_size, n_reserved=0, padded_vocab_size=0)
        found = build_tokens(corpus, tmp_path / name, TokensRecipe(options))
        return found["data_sha256"], TokenSet.open(tmp_path / name).held_out_sha256 or ""

    def changed(name: str, change: Callable[[str, list[str]], list[str]]) -> Path:
        """The corpus with other documents in its files; `change(path, texts)`."""
        shutil.copytree(small_corpus, tmp_path / name)
        manifest = json.loads((small_corpus / "manifest.json").read_text(encoding="utf-8"))
        for item in manifest["files"]:
            path = tmp_path / name / item["path"]
            texts = change(item["path"], list(read_texts(path)))
            path.write_bytes(zstandard.compress("".join(json.dumps({"text": t}) + "\n" for t in texts).encode()))
            item["n_documents"] = len(texts)
            item["n_bytes"] = sum(len(text.encode()) for text in texts)
        write_json(tmp_path / name / "manifest.json", manifest)
        return tmp_path / name

    def another_letter(path: str, texts: list[str]) -> list[str]:
        return [texts[0].replace("model", "modem"), *texts[1:]] if path.startswith("valid/prose") else texts

    (data, text), (other_data, same) = tokens_of(small_corpus, "a"), tokens_of(small_corpus, "b", vocab_size=280)
    assert data != other_data and text == same and len(text) == 64
    backwards = changed("order", lambda path, texts: texts[::-1])
    less_training = changed("train", lambda path, texts: texts[5:] if path.startswith("train") else texts)
    assert tokens_of(backwards, "c")[1] == tokens_of(less_training, "d")[1] == text
    assert tokens_of(changed("letter", another_letter), "e")[1] != text


def test_tokens_of_an_older_version_learn_the_hash_of_their_held_out_text(
    small_corpus: Path, tokens_recipe: TokensRecipe, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    built = build_tokens(small_corpus, out, tokens_recipe)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    del manifest["held_out_sha256"]
    write_json(out / "manifest.json", manifest)
    assert TokenSet.open(out).held_out_sha256 is None
    assert build_tokens(small_corpus, out, tokens_recipe)["reused"]
    assert TokenSet.open(out).held_out_sha256 == built["held_out_sha256"]


def test_trained_tokenizer_can_be_reused(small_corpus: Path, tokens_folder: Path, tmp_path: Path) -> None:
    found = build_tokens(small_corpus, tmp_path / "out", TokensRecipe(reuse_tokenizer=str(tokens_folder)))
    assert found["tokenizer_sha256"] == Tokenizer.load(tokens_folder).sha256


def test_vocabulary_too_large_for_the_corpus_leaves_nothing_behind(small_corpus: Path, tmp_path: Path) -> None:
    recipe = TokensRecipe(TokenizerOptions(vocab_size=50_000, padded_vocab_size=0))
    with pytest.raises(DataError, match=r"larger than the corpus supports: only .* lower vocab_size to"):
        build_tokens(small_corpus, tmp_path / "out", recipe)
    assert not list(tmp_path.iterdir())


def test_recipe_for_another_tokenizer_is_refused(tokens_folder: Path) -> None:
    with pytest.raises(DataError, match="a recipe for another tokenizer: expected 0123456789abcdef, found"):
        TokenSet.open(tokens_folder, tokenizer_sha256="0123456789abcdef" * 4)


def test_missing_corpus_or_tokens_say_which_command_makes_them(tokens_recipe: TokensRecipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json; make it with: isoflop corpus"):
        build_tokens(tmp_path / "none", tmp_path / "out", tokens_recipe)
    with pytest.raises(DataError, match=r"no manifest\.json; make it with: isoflop tokens"):
        TokenSet.open(tmp_path / "none")


def test_damaged_shards_are_named(tokens_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tokens_folder, folder)
    data = bytearray((folder / "train.code.bin").read_bytes())
    data[10] ^= 1
    (folder / "train.code.bin").write_bytes(data)
    TokenSet.open(folder)  # sizes agree: only a full check sees it
    with pytest.raises(DataError, match=r"train\.code\.bin is damaged"):
        TokenSet.open(folder, verify=True)
    (folder / "train.code.bin").write_bytes(data[:-2])
    with pytest.raises(DataError, match=r"train\.code\.bin has \d+ bytes, the manifest says"):
        TokenSet.open(folder)


def test_unknown_domain_lists_the_known_ones(token_set: TokenSet) -> None:
    with pytest.raises(DataError, match=r"'law' has no train shard.*there are: code, prose"):
        token_set.tokens("train", "law")


@pytest.mark.parametrize("name", ["default", "demo", "deepseek-v3"])
def test_tokens_recipes_have_room_for_the_special_tokens(name: str) -> None:
    options = load_recipe(ROOT / "recipes" / "tokens" / f"{name}.toml", TokensRecipe).tokenizer
    n_special = 2 + 3 * options.fim_tokens + 2 * options.chat_tokens + options.n_reserved
    assert options.padded_vocab_size is not None
    assert options.vocab_size + n_special <= options.padded_vocab_size


def test_padding_is_automatic_and_that_of_the_paper_for_its_vocabulary() -> None:
    assert with_padding(TokenizerOptions()).padded_vocab_size == 102_400
    assert with_padding(TokenizerOptions(vocab_size=1024)).padded_vocab_size == 0  # rounded up to pad_multiple
    assert with_padding(TokenizerOptions(padded_vocab_size=0)).padded_vocab_size == 0
    assert with_padding(TokenizerOptions(1024, padded_vocab_size=2048)).padded_vocab_size == 2048


def test_a_small_vocabulary_alone_gives_a_small_head(small_corpus: Path, tmp_path: Path) -> None:
    made = build_tokens(small_corpus, tmp_path / "tokens", TokensRecipe(TokenizerOptions(vocab_size=300)))
    assert made["vocab_size"] == 320 and made["n_tokenizer_tokens"] == 315


def test_a_folder_of_somebody_else_is_never_replaced(
    small_corpus: Path, tokens_recipe: TokensRecipe, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work", encoding="utf-8")
    with pytest.raises(DataError, match="has files that this command did not make"):
        build_tokens(small_corpus, tmp_path, tokens_recipe)
    with pytest.raises(DataError, match="has files that this command did not make"):
        build_tokens(small_corpus, small_corpus, tokens_recipe)  # a corpus is no tokens folder either
    build_tokens(small_corpus, tmp_path / "tokens", tokens_recipe)
    (tmp_path / "tokens" / "notes.txt").write_text("what I tried", encoding="utf-8")
    with pytest.raises(DataError, match=r"or move them: .*notes\.txt"):
        build_tokens(small_corpus, tmp_path / "tokens", TokensRecipe(TokenizerOptions(vocab_size=300)))


def test_a_folder_behind_a_link_is_filled_and_replaced(small_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for size in (300, 310):
        build_tokens(small_corpus, tmp_path / "out", TokensRecipe(TokenizerOptions(vocab_size=size)))
        assert (tmp_path / "out").is_symlink()
    assert read_manifest(tmp_path / "disk", "")["made_from"]["tokenizer"]["vocab_size"] == 310


@pytest.mark.parametrize(
    "change",
    [{"shards": [{"path": "x"}]}, {"shards": 3}, {"dtype": "int3"}, {"tokenizer_sha256": None}, {"vocab_size": ...}],
    ids=str,
)
def test_a_manifest_that_was_edited_is_one_message(small_corpus: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    build_tokens(small_corpus, tmp_path, TokensRecipe(TokenizerOptions(vocab_size=300)))
    found = {**read_manifest(tmp_path, ""), **change}
    write_json(tmp_path / "manifest.json", {key: value for key, value in found.items() if value is not ...})
    with pytest.raises(DataError, match=r"make (the tokens|them) again: isoflop tokens RECIPE"):
        TokenSet.open(tmp_path)
