"""Make the goldens anew: `python tests/golden/make.py laws | runs | runs-and-folders`, one thread, a minute.

Out of `runs`: what runs computed in `data/numbers/`, and `data/machine.json` (on what); of `laws`: `data/laws/`, the
numbers that follow from laws, `data/machine_laws.json`. They are to be made again only where numbers change on purpose,
and the commit says why. With `runs-and-folders` also `data/folders/`: files of the format of that day, which later
versions must read and go on with; new ones are better added beside the old than put in their place.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import golden_runs as runs
from golden_numbers import fingerprint, without_excepted

DATA = runs.HERE / "data"


def write(name: str, numbers: Any) -> None:
    """One golden: compact, one line for each top-level entry."""
    rows = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in without_excepted(numbers).items()]
    (DATA / "numbers").mkdir(parents=True, exist_ok=True)
    (DATA / f"numbers/{name}.json").write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    print(name)


def make_numbers() -> None:
    """All runs, undisturbed; they leave tokens and base in the working directory."""
    from in_situ_run import in_situ

    write("tokens", runs.text_to_tokens())
    for name in runs.PRETRAIN:
        write(name, runs.pretrain(name, "base" if name == "dense" else name))
    write("extended", runs.extend("extended"))
    write("imaging", runs.imaging("imaging"))
    write("imaging_sweep", runs.imaging_sweep("imaging_sweep"))
    write("in_situ", {**in_situ(Path("in_situ")), "metrics": runs.read_lines(Path("in_situ/metrics.jsonl"))})
    write("sweep", runs.sweep("sweep"))
    write("grid", runs.sweep("grid", *runs.GRID))
    write_machine("machine")


def make_laws() -> None:
    """Laws of studies and of a sweep, and what is planned from them with the tokens of the goldens."""
    shutil.copytree(DATA / "folders/tokens", "tokens")
    runs.sweep("sweep")
    write("sweep_laws", runs.fitted(Path("sweep/records.jsonl"), 20, "sweep_laws.json"))
    write("single_laws", {law: runs.single_law(law) for law in runs.SINGLE_LAWS})
    for study in runs.STUDIES:
        runs.laws_of(study, runs.laws_file(study))
    write("plans", runs.plans("laws"))
    write("planned", runs.plan_and_score("laws/demo-seed0-9c5d3f0.json"))
    shutil.rmtree(DATA / "laws", ignore_errors=True)
    shutil.copytree("laws", DATA / "laws")
    write_machine("machine_laws")


def write_machine(name: str) -> None:
    (DATA / f"{name}.json").write_text(json.dumps(fingerprint(), indent=1) + "\n", encoding="utf-8")


def stop_when(pattern: str, *arguments: object) -> None:
    """`isoflop ARGUMENTS` in this process, Ctrl-C as soon as a file that is not empty matches `pattern`."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if any(path.stat().st_size for path in Path().glob(pattern)):
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        runs.main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        assert stopped.code == 130, stopped.code
    else:
        raise AssertionError(f"{arguments[0]} was faster than Ctrl-C; run this script again")
    finally:
        ended.set()
        watcher.join()


def kill_when(pattern: str, *arguments: object) -> None:
    """`isoflop ARGUMENTS` in a process of its own, killed with its workers as soon as a file matches `pattern`."""
    code = "from isoflop.cli.main import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], start_new_session=True)
    while process.poll() is None and not any(Path().glob(pattern)):
        time.sleep(0.001)
    assert process.poll() is None, f"{arguments[0]} was faster than the kill; run this script again"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def make_folders() -> None:
    """One unfinished folder of each kind, in `unfinished`; and what they need: a finished run, tokens."""
    from in_situ_run import in_situ

    out = Path("unfinished")
    for name in ("dense", "deep"):
        recipe, *overrides = runs.PRETRAIN[name]
        pattern = f"{out}/{name}/checkpoints/step_00000010/state.json"
        stop_when(pattern, "train", runs.RECIPES / recipe, *overrides, "--out", out / name)
    pattern = f"{out}/extended/checkpoints/step_00000010/state.json"
    stop_when(pattern, "extend", runs.RECIPES / "extend.toml", "--out", out / "extended")
    pattern = f"{out}/imaging/metrics.jsonl"
    stop_when(pattern, "imaging", "train", runs.RECIPES / "imaging.toml", "--out", out / "imaging")
    pattern = f"{out}/grid/cells/*/checkpoints/step_*/state.json"
    grid = ("sweep", runs.RECIPES / "sweep.toml", *runs.GRID)
    kill_when(pattern, *grid, "--out", out / "grid", "--no-calibrate")
    with contextlib.suppress(KeyboardInterrupt):
        in_situ(out / "in_situ", stop_at=24)
    for name in ("base", "tokens"):
        shutil.copytree(name, out / name)
    for path in [*out.rglob(".lock"), *out.rglob(".writing-*"), *out.rglob("speed.jsonl"), *out.rglob("*.stages")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(DATA / "folders", ignore_errors=True)
    shutil.copytree(out, DATA / "folders")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, runs.working_in(Path(folder)):
        runs.write_inputs(Path())
        if sys.argv[1] == "laws":
            make_laws()
        else:
            make_numbers()
        if sys.argv[1] == "runs-and-folders":
            make_folders()
