"""The same corpus, byte for byte: any number of workers, any order of the input, any engine, after kills and faults."""

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from killing import finish, kill, start, wait_until

from isoflop.cli import main as cli
from isoflop.corpus import pipeline
from isoflop.corpus.build import build_corpus
from isoflop.corpus.document import SourceOptions
from isoflop.corpus.passkey import PasskeyOptions
from isoflop.corpus.recipe import CorpusRecipe, SplitOptions
from isoflop.corpus.remix import MixOptions
from isoflop.recipe import write_recipe

N_KILLS = 10


def write_texts(folder: Path, *, backwards: bool = False) -> None:
    """Two sources of made-up text with exact and near-duplicates, files made in one order or the other."""
    generator = random.Random(7)
    words = ["".join(generator.choices("abcdefghij", k=generator.randint(3, 8))) for _ in range(800)]
    files = {}
    for number in range(6):
        texts = [
            "\n".join(" ".join(generator.choices(words, k=12)) + "." for _ in range(generator.randint(1, 30)))
            for _ in range(40)
        ]
        texts += [texts[0], texts[1] + " and so on", "x"]
        records = [json.dumps({"text": text, "lang": "en"}) for text in texts]
        files[f"{'ab'[number % 2]}/part{number}.jsonl"] = "\n".join(records) + "\n{broken\n"
    for name in sorted(files, reverse=backwards):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(files[name], encoding="utf-8")


def recipe_of(folder: Path, *, backwards: bool = False, **options: object) -> CorpusRecipe:
    sources = [SourceOptions(path=str(folder / name), domain=f"domain_{name}", license="CC0") for name in "ab"]
    return CorpusRecipe(
        **{
            "sources": tuple(reversed(sources) if backwards else sources),
            "split": SplitOptions(valid_fraction=0.2, max_piece_kb=4.0),
            "mix": MixOptions(temperature=2.0, train_gb=0.001),
            "passkey": (PasskeyOptions(n_documents=200),),
            "partitions": 8,
            **options,
        }  # type: ignore[arg-type]
    )


def content_of(out: Path) -> dict[str, str]:
    """Hash of every file but build.json, which says when and where it was made."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("build.json", ".lock")
    }


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder)
    return folder


@pytest.fixture(scope="module")
def reference(texts: Path) -> dict[str, str]:
    """The corpus built in one go by one process."""
    build_corpus(recipe_of(texts, workers=1), texts / "out" / "corpus")
    return content_of(texts / "out" / "corpus")


def test_several_workers_give_the_same_bytes(texts: Path, reference: dict[str, str], tmp_path: Path) -> None:
    assert {"manifest.json", "report.html", "report.json", "mixture.toml", "quarantine.jsonl"} <= set(reference)
    build_corpus(recipe_of(texts, workers=3), tmp_path / "corpus")
    assert content_of(tmp_path / "corpus") == reference
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]  # no stage is left behind


def test_another_order_of_files_and_sources_gives_the_same_bytes(
    texts: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in texts.glob("?/*.jsonl")}
    try:
        for path in before:
            path.unlink()
        write_texts(texts, backwards=True)
        build_corpus(recipe_of(texts, backwards=True, workers=1), tmp_path / "corpus")
    finally:
        for path, data in before.items():
            path.write_bytes(data)
    assert content_of(tmp_path / "corpus") == reference


def test_a_full_disk_is_one_message_and_the_same_command_goes_on(
    texts: Path, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    write_recipe(tmp_path / "recipe.toml", recipe_of(texts, workers=1))
    command = ["corpus", "build", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "corpus")]
    filter_partition = pipeline.filter_partition

    def full(partition: int, *arguments: object):
        if partition == 5:
            raise OSError(errno.ENOSPC, "No space left on device", "part-00005")
        return filter_partition(partition, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "filter_partition", full)
    with pytest.raises(SystemExit) as stopped:
        cli.main(command)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and "No space left on device" in message and "run the same command again" in message
    assert not (tmp_path / "corpus").exists()
    monkeypatch.undo()
    stages = tmp_path / ".corpus.stages"
    assert len(list(next(stages.glob("filter-*")).glob("done/*.json"))) == 5
    cli.main(command)
    assert content_of(tmp_path / "corpus") == reference


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="needs the right to mount a small disk")
def test_a_disk_that_is_really_full_loses_nothing(texts: Path, reference: dict[str, str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not allow to mount a small disk")
    try:
        write_recipe(tmp_path / "recipe.toml", recipe_of(texts, workers=1))
        command = ("corpus", "build", tmp_path / "recipe.toml", "--out", disk / "corpus")
        code, errors = finish(start(*command))
        assert code == 2 and "Traceback" not in errors, errors
        assert "No space left on device" in errors and "run the same command again" in errors
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        code, errors = finish(start(*command))
        assert code == 0, errors
        assert content_of(disk / "corpus") == reference
    finally:
        subprocess.run(["umount", disk], check=False)


def test_a_kill_while_stages_are_removed_leaves_none_that_looks_finished(
    texts: Path, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rmtree = tmp_path / "corpus", shutil.rmtree

    def killed(folder: Path, ignore_errors: bool = False) -> None:
        """Removes marks as asked; the first folder of data loses some partitions, and the process ends."""
        if not folder.name.startswith(("documents-", ".corpus.stages")):
            return rmtree(folder, ignore_errors)
        for path in sorted(folder.rglob("*00002*")):
            path.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(recipe_of(texts, workers=1), out)
    monkeypatch.undo()
    assert content_of(out) == reference
    rmtree(out)
    build_corpus(recipe_of(texts, workers=1), out)
    assert content_of(out) == reference


def _kill_often(texts: Path, tmp_path: Path, n_kills: int, seed: int) -> int:
    """Kill the command `n_kills` times, each time after some more finished tasks; how many kills found it at work."""
    write_recipe(tmp_path / "recipe.toml", recipe_of(texts, workers=2))
    out, stages = tmp_path / "corpus", tmp_path / ".corpus.stages"
    command = ("corpus", "build", tmp_path / "recipe.toml", "--out", out)
    generator, hits = random.Random(seed), 0

    def done() -> int:
        return len(list(stages.glob("*/done/*.json")))

    for number in range(n_kills):
        goal = done() + generator.randint(0, max(1, 60 // n_kills))
        process = start(*command)
        alive = wait_until(lambda goal=goal: done() > goal or out.exists(), process)
        hits += alive and not out.exists()
        kill(process)
        if out.exists():  # it was faster: the next ones begin anew
            shutil.rmtree(out)
            if number < n_kills - 1:
                shutil.rmtree(stages, ignore_errors=True)
    code, errors = finish(start(*command))
    assert code == 0, errors
    return hits


def test_a_killed_build_goes_on_to_the_same_bytes(texts: Path, reference: dict[str, str], tmp_path: Path) -> None:
    assert _kill_often(texts, tmp_path, 2, seed=1) >= 1
    assert content_of(tmp_path / "corpus") == reference


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_byte(texts: Path, reference: dict[str, str], tmp_path: Path) -> None:
    assert _kill_often(texts, tmp_path, N_KILLS, seed=2) >= 8
    assert content_of(tmp_path / "corpus") == reference


@pytest.mark.dist
def test_a_cluster_of_several_workers_gives_the_same_bytes(
    texts: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="the cluster engine is an extra: pip install isoflop[cluster]")
    write_recipe(tmp_path / "recipe.toml", recipe_of(texts, workers=3, engine="ray"))
    code, errors = finish(start("corpus", "build", tmp_path / "recipe.toml", "--out", tmp_path / "corpus"))
    assert code == 0, errors
    assert content_of(tmp_path / "corpus") == reference
    assert json.loads((tmp_path / "corpus" / "build.json").read_text(encoding="utf-8"))["engine"] == "ray"
