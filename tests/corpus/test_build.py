import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from places import SHARED

from isoflop.corpus.build import build_corpus
from isoflop.corpus.dedup.options import DedupOptions
from isoflop.corpus.document import SourceOptions
from isoflop.corpus.filter.rules import FilterOptions
from isoflop.corpus.read.clean import CleanOptions
from isoflop.corpus.read.environment import EnvironmentOptions
from isoflop.corpus.read.pieces import cut_pieces
from isoflop.corpus.read.sources import read_texts
from isoflop.corpus.recipe import CorpusRecipe, SplitOptions
from isoflop.errors import DataError, RecipeError
from isoflop.recipe import from_tree, write_json

REAL = SHARED / "pretrain"


def _text(generator: random.Random, n_words: int = 200) -> str:
    words = ["".join(generator.choices("abcdefgh", k=5)) for _ in range(n_words)]
    return "\n\n".join("paragraph " + " ".join(words[start : start + 40]) for start in range(0, n_words, 40))


def _write(path: Path, texts: Iterable[str], **more: str) -> None:
    lines = (json.dumps({"text": text, **more}) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")


def _train_and_valid(folder: Path) -> tuple[SourceOptions, ...]:
    return tuple(SourceOptions(path=str(folder / f"{s}.jsonl"), split=s) for s in ("train", "valid"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = random.Random(1)
    texts = [_text(generator) for _ in range(100)]
    records = [{"text": text} for text in [*texts, texts[0], texts[1] + " end"]]
    lines = [json.dumps(record) for record in records] + ["{broken", json.dumps({"text": "tiny"})]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def _recipe(folder: Path, **options: object) -> CorpusRecipe:
    source = SourceOptions(path=str(folder / "docs.jsonl"), domain="prose", license="CC0")
    return CorpusRecipe(**{"sources": (source,), "split": SplitOptions(valid_fraction=0.2), **options})  # type: ignore[arg-type]


def test_corpus_counts_what_came_in_and_what_went(folder: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    out = folder / "corpus"
    manifest = build_corpus(_recipe(folder), out, on_progress=lambda *call: calls.append(call))
    assert {name: count for name, count in manifest["duplicates"].items() if count} == {"exact": 1, "near": 1}
    assert manifest["drops"] == {"prose": {"too_short": 1}}
    assert manifest["n_bad_records"] == 1
    assert json.loads((out / "quarantine.jsonl").read_text(encoding="utf-8"))["origin"] == "docs.jsonl/docs.jsonl:103"
    assert manifest["n_documents"] == 100
    assert manifest["licenses"] == {"CC0": 100}
    for item in manifest["files"]:
        texts = list(read_texts(out / item["path"]))
        assert (item["n_documents"], item["n_bytes"]) == (len(texts), sum(len(text.encode()) for text in texts))
    valid = next(item for item in manifest["files"] if item["split"] == "valid")
    assert 8 <= valid["n_documents"] <= 32  # 20 expected, standard deviation 4
    assert calls[-1][1] == calls[-1][2] > 0


def test_second_run_is_a_no_op_and_a_changed_file_is_not(folder: Path) -> None:
    out = folder / "corpus"
    first = build_corpus(_recipe(folder), out)
    before = (out / "manifest.json").stat().st_mtime_ns
    again = build_corpus(_recipe(folder, workers=1), out)
    assert (first["reused"], again["reused"]) == (False, True)
    assert (out / "manifest.json").stat().st_mtime_ns == before
    (out / "train" / "prose.jsonl.zst").unlink()
    assert not build_corpus(_recipe(folder), out)["reused"]
    with (folder / "docs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": _text(random.Random(9))}) + "\n")
    changed = build_corpus(_recipe(folder), out)
    assert not changed["reused"]
    assert changed["corpus_sha256"] != first["corpus_sha256"]
    assert not [path for path in folder.iterdir() if path.name.startswith(".corpus")]


def test_pieces_of_a_document_stay_on_one_side(tmp_path: Path) -> None:
    generator = random.Random(2)
    for index in range(12):
        (tmp_path / f"book{index}.txt").write_text(_text(generator, 3000), encoding="utf-8")
    source = SourceOptions(path=str(tmp_path), domain="prose")
    recipe = CorpusRecipe(sources=(source,), split=SplitOptions(valid_fraction=0.3, max_piece_kb=4.0))
    manifest = build_corpus(recipe, tmp_path / "corpus")
    books = [{_record["source"] for _record in _records(tmp_path / "corpus" / i["path"])} for i in manifest["files"]]
    assert len(books) == 2
    assert not books[0] & books[1]
    assert manifest["n_documents"] > 24


def test_training_text_that_nearly_equals_validation_text_goes(tmp_path: Path) -> None:
    generator = random.Random(3)
    texts = [_text(generator) for _ in range(10)]
    _write(tmp_path / "valid.jsonl", texts[:3])
    quoting = texts[2][: len(texts[2]) // 2] + "\n\n" + texts[9]
    _write(tmp_path / "train.jsonl", [texts[0], texts[1] + " more", quoting, *texts[3:9]])
    manifest = build_corpus(CorpusRecipe(sources=_train_and_valid(tmp_path)), tmp_path / "corpus")
    assert {item["split"]: item["n_documents"] for item in manifest["files"]} == {"train": 6, "valid": 3}
    assert manifest["duplicates"]["exact"] + manifest["duplicates"]["near"] == 2
    assert manifest["duplicates"]["train_quotes_valid"] == 1


def test_cut_pieces_join_to_the_text_and_meet_again_after_a_difference() -> None:
    generator = random.Random(4)
    text = _text(generator, 20_000)
    pieces = cut_pieces(text, 8_000)
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= 8_000
    other = cut_pieces("A preface of another edition.\n\n" + text, 8_000)
    assert len(set(pieces) & set(other)) >= len(pieces) - 3
    for odd in ("\u4e2d" * 9_000, "x" * 30_000, "a\n" * 20_000, ""):
        assert "".join(cut_pieces(odd, 8_000)) == odd
        assert all(len(piece.encode()) <= 8_000 for piece in cut_pieces(odd, 8_000))


def test_corpus_without_any_usable_document_is_refused_with_counts(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_bytes(b'{broken\n{"text": "tiny"}\n')
    with pytest.raises(DataError, match=r"no usable document in 1 files \(1 records could not be read.*too_short 1"):
        build_corpus(_recipe(tmp_path), tmp_path / "corpus")
    for content in (b"", b"\xff\xfe\x00\xff" * 100, b"[1, 2]\n"):
        (tmp_path / "docs.jsonl").write_bytes(content)
        with pytest.raises(DataError, match="no usable document in 1 files"):
            build_corpus(_recipe(tmp_path), tmp_path / "corpus")
    (tmp_path / "docs.jsonl").unlink()
    with pytest.raises(DataError, match="does not exist"):
        build_corpus(_recipe(tmp_path), tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_contradictions_in_the_recipe_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"names none and environment\.enabled = false"):
        build_corpus(CorpusRecipe(environment=EnvironmentOptions(enabled=False)), folder / "corpus")
    with pytest.raises(RecipeError, match=r"split\.valid_fraction = 1\.5 must be at least 0 and below 1"):
        build_corpus(_recipe(folder, split=SplitOptions(valid_fraction=1.5)), folder / "corpus")
    with pytest.raises(DataError, match=r"no document is left for valid \(dropped by rule: .*\); raise split"):
        build_corpus(_recipe(folder, split=SplitOptions(valid_fraction=0.0)), folder / "corpus")
    source = SourceOptions(path=str(folder / "docs.jsonl"))
    with pytest.raises(RecipeError, match="is used twice; give each source a name"):
        build_corpus(CorpusRecipe(sources=(source, source)), folder / "corpus")


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the shared data folder beside the checkout")
def test_real_text_with_known_dirt_is_cleaned(tmp_path: Path) -> None:
    sources = tuple(SourceOptions(path=str(REAL / name), domain="law") for name in ("laws_zh", "raw_samples"))
    recipe = CorpusRecipe(sources=sources, clean=CleanOptions(), dedup=DedupOptions(), workers=1)
    manifest = build_corpus(recipe, tmp_path / "corpus")
    assert manifest["duplicates"]["exact"] >= 1
    assert manifest["duplicates"]["near"] >= 5  # README: 9 near-duplicate laws, counted on whole documents
    reasons = [_record["reason"] for _record in _records(tmp_path / "corpus" / "quarantine.jsonl")]
    # the Latin-1 and the GB18030 sample are read in their encodings
    assert reasons == ["left out: 1 files, this one first: .cnxml is no known kind"]


def _records(path: Path) -> list[dict[str, str]]:
    if path.suffix != ".zst":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with zstandard.open(path, "rt", encoding="utf-8") as file:  # a reader that stops after the first frame
        return [json.loads(line) for line in file]


def test_a_folder_of_somebody_else_is_never_replaced(folder: Path) -> None:
    other = folder / "precious"
    other.mkdir()
    (other / "thesis.txt").write_text("ten years of work", encoding="utf-8")
    with pytest.raises(DataError, match="has files that this command did not make; give an empty or a new folder"):
        build_corpus(_recipe(folder), other)
    assert (other / "thesis.txt").read_text(encoding="utf-8") == "ten years of work"
    for name in ("notes.txt", "train/notes.txt"):  # beside what the command made
        out, mine = folder / "corpus", folder / "corpus" / name
        build_corpus(_recipe(folder), out)
        mine.write_text("which rules I tried", encoding="utf-8")
        with pytest.raises(DataError, match=f"or move them: {mine}"):
            build_corpus(_recipe(folder, split=SplitOptions(valid_fraction=0.3)), out)
        assert mine.read_text(encoding="utf-8") == "which rules I tried"
        mine.unlink()


def test_a_file_that_came_while_the_corpus_was_made_is_kept(folder: Path) -> None:
    out = folder / "corpus"

    def come(stage: str, done: float, total: float) -> None:
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("ten years of work", encoding="utf-8")

    with pytest.raises(DataError, match="has files that this command did not make"):
        build_corpus(_recipe(folder), out, on_progress=come)
    assert (out / "thesis.txt").is_file()


def test_a_tokens_folder_is_not_taken_for_a_corpus_to_replace(folder: Path) -> None:
    tokens = folder / "tokens"
    write_json(tokens / "manifest.json", {"data_sha256": "1", "made_from": {"corpus_sha256": "2"}})
    with pytest.raises(DataError, match="has files that this command did not make"):
        build_corpus(_recipe(folder), tokens)
    assert (tokens / "manifest.json").is_file()


def test_a_folder_behind_a_link_is_filled_and_replaced(folder: Path) -> None:
    disk, out = folder / "disk", folder / "out"
    disk.mkdir()
    out.symlink_to(disk)
    for fraction in (0.2, 0.3):
        build_corpus(_recipe(folder, split=SplitOptions(valid_fraction=fraction)), out)
        assert out.is_symlink() and (disk / "manifest.json").is_file()


def test_a_mount_point_is_refused_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "out")
    (folder / "out").mkdir()
    with pytest.raises(DataError, match=r"out is a mount point, .*; give a folder inside it"):
        build_corpus(_recipe(folder), folder / "out")


def test_families_of_rules_and_decontamination_drop_by_domain_and_given_validation_stays(tmp_path: Path) -> None:
    generator = random.Random(8)
    question = "which river runs past the old mill where the two brothers kept their painted boats in winter"
    texts = [_text(generator) for _ in range(30)]
    pages = [*texts[:20], texts[20] + f"\n\n{question} and so on", "word " * 400]
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"question": question}) + "\n", encoding="utf-8")
    files = {"web": pages, "books": [*texts[21:], question * 2], "outside": [question, "word " * 400]}
    for name, found in files.items():
        _write(tmp_path / f"{name}.jsonl", found, lang="en")
    sources = tuple(
        SourceOptions(path=str(tmp_path / f"{n}.jsonl"), domain=n, split="valid" if n == "outside" else "train")
        for n in files
    )
    filters = {
        "gopher_quality": {"enabled": False},
        "gopher_repetition": {"enabled": False},
        "fineweb": {"enabled": False},
        "decontaminate": {"benchmarks": [{"name": "quiz", "path": str(tmp_path / "quiz.jsonl")}]},
        "overrides": [{"domains": ["web"], "values": {"gopher_repetition.enabled": True}}],
    }
    recipe = CorpusRecipe(sources=sources, filters=from_tree(filters, FilterOptions), dedup=DedupOptions(near=False))
    manifest = build_corpus(recipe, tmp_path / "clean")
    raw = build_corpus(replace(recipe, raw=True), tmp_path / "raw")
    count = {item["domain"]: item["n_documents"] for item in manifest["files"]}
    assert count == {"web": 20, "books": 9, "outside": 2}
    assert manifest["drops"]["web"]["contaminated"] == 1 and manifest["drops"]["books"] == {"contaminated": 1}
    report = json.loads((tmp_path / "clean" / "report.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in report["stages"]] == ["read", "duplicates", "filter", "decontaminate"]
    assert report["contamination"][0]["benchmark"] == "quiz" and report["contamination"][0]["n_found"] == 1
    assert {item["domain"]: item["n_documents"] for item in raw["files"]} == {"web": 22, "books": 10, "outside": 2}
    outside = [[item["sha256"] for item in m["files"] if item["split"] == "valid"] for m in (manifest, raw)]
    assert outside[0] == outside[1]  # what they are measured on is the same text


def test_a_sample_takes_its_share_of_training_and_all_of_validation(tmp_path: Path) -> None:
    generator = random.Random(9)
    for name, n in (("train", 200), ("valid", 20)):
        _write(tmp_path / f"{name}.jsonl", [_text(generator) for _ in range(n)])
    sources = _train_and_valid(tmp_path)
    whole = build_corpus(CorpusRecipe(sources=sources), tmp_path / "whole")
    small = build_corpus(CorpusRecipe(sources=sources, sample=0.25), tmp_path / "small")
    count = {item["split"]: item["n_documents"] for item in small["files"]}
    assert 30 <= count["train"] <= 70 and count["valid"] == 20  # 50 expected, standard deviation 6
    taken, all_ = (set(read_texts(tmp_path / name / whole["files"][0]["path"])) for name in ("small", "whole"))
    assert taken < all_
    stages = json.loads((tmp_path / "small" / "report.json").read_text(encoding="utf-8"))["stages"]
    assert [stage["name"] for stage in stages] == ["read", "sample", "duplicates", "filter"]
    with pytest.raises(RecipeError, match=r"sample = 0\.0 must be above 0"):
        build_corpus(CorpusRecipe(sources=sources, sample=0.0), tmp_path / "none")
