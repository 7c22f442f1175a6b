"""What the goldens are made of: tiny runs through the public commands, and the numbers that they leave on disk.

In: the recipes beside this file. Out: plain data (dictionaries, lists, numbers as the files have them). All paths in
recipes are relative to the working directory, so that a folder of runs can be copied and gone on with elsewhere.
"""

import contextlib
import json
import random
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.cli.main import main

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECIPES = Path("recipes")
"""Where `write_inputs` puts them, in the working directory: nothing on disk names a folder of this machine."""
FP8 = ('numerics.rules=[{modules = "blocks.*", format = "fp8_block"}]', "numerics.fp8_block.block=4")
PHOTONIC = ('numerics.rules=[{modules = "blocks.*", format = "photonic"}]', 'numerics.photonic.backward="core"')
PRETRAIN = {
    "dense": ("dense.toml",),
    "deep": ("deep.toml",),
    "fp8": ("dense.toml", *FP8),
    "fp8_deep": ("deep.toml", *FP8),
    "photonic": ("dense.toml", *PHOTONIC),
}
"""Name of a run -> recipe and overrides of `isoflop train`."""
CPU = ("train.device=cpu", "train.threads=1", "train.precision=float32")
PLAN_FLOPS = 1.2e9
SHORT = ("h100-first", "h100-second", "numerics/float32", "numerics/photonic-4bit", "experts")
DEMOS = ("first-seed0", "first-seed1", "seed0-d86ed22", "seed0-d8f51e2", "seed1-095c9c9")
STUDIES = {
    **{name: (f"{name}/records.jsonl", 10) for name in (*SHORT, *(f"demo-{demo}" for demo in DEMOS))},
    **{name: (f"{name}/records.jsonl", 100) for name in ("h100", "demo-seed0-9c5d3f0")},
    **{f"data-{name}": (f"data/{name}.jsonl", 10) for name in ("clean", "raw")},
}
"""Study -> its records in docs/studies, and how many resamples its laws get; a plan needs 100."""
DEMO, H100, EXPERTS = (f"{study}/records.jsonl" for study in ("demo-seed0-9c5d3f0", "h100", "experts"))
SINGLE_LAWS = {
    "parabola": ((DEMO,), "--where", "kind=cell", "--interpolation", "akima"),
    "surface": ((H100,), "--at-flops", "1e18", "--group", "budget"),
    "lstar": ((DEMO,), "--where", "kind=cell"),
    "power": ((H100,), "--map", "x=n_tokens,y=bits_per_byte", "--where", "d_model>1"),
    "hyper": (("h100-hyper.jsonl",),),
    "experts": ((EXPERTS, H100),),
}
"""Law -> records in docs/studies, and options of `isoflop fit --law`."""
GRID = (
    *('ladder.purpose="grid"', "ladder.budgets=[]", "ladder.sizes=[13100]", "ladder.tokens_per_param=[1.2, 2.4]"),
    *("hyper.batch_tokens.coefficient=128", "checkpoint.keep=1"),
)
"""What makes of sweep.toml one trunk with two branches."""


def isoflop(*arguments: object) -> None:
    """A command of the command line, in this process. Raises AssertionError with its exit code when it fails."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        if stopped.code:
            raise AssertionError(f"isoflop {' '.join(map(str, arguments))} ended with {stopped.code}") from stopped


def asked(*arguments: object) -> Any:
    """The same; returns what --json writes."""
    answer = Path("answer.json")
    answer.unlink(missing_ok=True)
    isoflop(*arguments, "--json", answer)
    return json.loads(answer.read_text(encoding="utf-8"))


def write_inputs(folder: Path) -> None:
    """Text of two domains and pictures of two kinds, the same on every machine: no library draws them."""
    generator = random.Random(7)
    words = ["".join(generator.choices("etaoinshr", k=generator.randint(2, 6))) for _ in range(60)]
    shutil.copytree(HERE / "recipes", folder / RECIPES)
    (folder / "text").mkdir()
    for domain, n_documents in (("prose", 40), ("code", 20)):
        lines = []
        for _ in range(n_documents):
            rows = [" ".join(generator.choices(words, weights=range(60, 0, -1), k=8)) for _ in range(6)]
            lines.append(json.dumps({"text": "\n".join(rows)}))
        (folder / f"text/{domain}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pictures = np.zeros((144, 12, 12), np.uint8)
    for index, picture in enumerate(pictures):
        row, column, shade = index % 11, index // 11 % 11, 255 - index % 7 * 20
        if index % 2:
            picture[row : row + 2, :] = shade
        else:
            picture[:, column : column + 2] = shade
        picture[column, row] = 255 - picture[column, row]
    np.savez(folder / "pictures.npz", train_x=pictures[:120], test_x=pictures[120:])


def text_to_tokens() -> dict[str, Any]:
    """`corpus build` and `tokens` in the working directory."""
    isoflop("corpus", "build", RECIPES / "corpus.toml", "--out", "corpus")
    isoflop("tokens", RECIPES / "tokens.toml", "--corpus", "corpus", "--out", "tokens")
    return {name: read_json(Path(name) / "manifest.json") for name in ("corpus", "tokens")}


def pretrain(name: str, out: str) -> dict[str, Any]:
    """A run of PRETRAIN."""
    recipe, *overrides = PRETRAIN[name]
    isoflop("train", RECIPES / recipe, *overrides, "--out", out)
    return run_numbers(Path(out))


def extend(out: str) -> dict[str, Any]:
    """The run in `base` at a longer context."""
    isoflop("extend", RECIPES / "extend.toml", "--out", out)
    return run_numbers(Path(out))


def imaging(out: str) -> dict[str, Any]:
    """One imaging run."""
    isoflop("imaging", "train", RECIPES / "imaging.toml", "--out", out)
    return run_numbers(Path(out))


def imaging_sweep(out: str) -> dict[str, Any]:
    """A study of imaging runs, and one of them under other conditions."""
    isoflop("imaging", "sweep", RECIPES / "imaging_sweep.toml", "--out", out)
    first = read_lines(Path(out) / "records.jsonl")
    evaluated = asked("imaging", "evaluate", f"{out}/runs/crop8", "camera.photons=2")
    return {"records": first, "evaluated": evaluated}


def sweep(out: str, *overrides: str) -> dict[str, Any]:
    """A sweep of trunks and branches: records, and the metrics of every run in it."""
    isoflop("sweep", RECIPES / "sweep.toml", *overrides, "--out", out, "--no-calibrate")
    return sweep_numbers(Path(out))


def sweep_numbers(folder: Path) -> dict[str, Any]:
    """Records by run id (their order in the file is the order in which runs ended) and metrics by folder."""
    records = {record["run_id"]: record for record in read_lines(folder / "records.jsonl")}
    runs = sorted(path.parent for kind in ("trunks", "cells") for path in (folder / kind).glob("*/metrics.jsonl"))
    metrics = {str(run.relative_to(folder)): read_lines(run / "metrics.jsonl") for run in runs}
    return {"records": dict(sorted(records.items())), "metrics": metrics}


def fitted(records: Path, resamples: int, out: str) -> dict[str, Any]:
    """All laws of records."""
    isoflop("fit", records, "--bootstrap", resamples, "--out", out)
    return read_json(Path(out))


def laws_of(study: str, out: str) -> dict[str, Any]:
    """All laws of a study in docs/studies."""
    records, resamples = STUDIES[study]
    return fitted(ROOT / "docs/studies" / records, resamples, out)


def laws_file(study: str) -> str:
    """Where the laws of a study lie, below the working directory or the data of the goldens."""
    return f"laws/{study.replace('/', '-')}.json"


def single_law(law: str) -> dict[str, Any]:
    """One law on its own, as JSON."""
    tables, *options = SINGLE_LAWS[law]
    paths = (ROOT / "docs/studies" / table for table in tables)
    return asked("fit", *paths, "--law", law, *options, "--bootstrap", 20)


def plans(folder: str) -> dict[str, Any]:
    """What old laws in `folder` say about other budgets, and about each other."""
    sizes = ("--vocab-size", 4096, "--seq-len", 256)
    budgets = {"h100": 4e17, "demo-seed0-9c5d3f0": 1e13}
    made = {
        name: asked("plan", f"{folder}/{name}.json", "--budget-flops", budget, *sizes, "--out", "plan.toml")
        for name, budget in budgets.items()
    }
    made["h100 served"] = asked(
        *("plan", f"{folder}/h100.json", "--gpu-hours", 10, "--hardware", "h100", "--serve-tokens", 1e10, *sizes),
        *("--unique-tokens", 1e9, "--out", "plan.toml"),
    )
    made["deepseek"] = asked("plan", "deepseek", "--budget-flops", 1e21, "--out", "plan.toml")
    pair = (f"{folder}/h100.json", f"{folder}/demo-seed0-9c5d3f0.json")
    compared = asked("compare", *pair, "--same-held-out")  # laws of that age do not say on which text
    return {"plans": made, "compared": compared}


def plan_and_score(laws: str) -> dict[str, Any]:
    """A plan so small that it runs here, the planned run, its score."""
    sizes = ("--vocab-size", 264, "--seq-len", 16)
    plan = asked("plan", laws, "--budget-flops", PLAN_FLOPS, *sizes, "--out", "plan.toml")
    recipe = tomllib.loads(Path("plan.toml").read_text(encoding="utf-8"))
    here = ('data.tokens="tokens"', 'data.tokenizer_sha256=""', *CPU, "train.micro_batch=0")
    isoflop("train", "plan.toml", *here, "--out", "target")
    result = read_json(Path("target/result.json"))
    return {"plan": plan, "recipe": recipe, "result": result, "score": asked("score", "target")}


def run_numbers(folder: Path) -> dict[str, Any]:
    """Metrics and result of a run folder."""
    return {"metrics": read_lines(folder / "metrics.jsonl"), "result": read_json(folder / "result.json")}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextlib.contextmanager
def working_in(folder: Path):
    """Commands see `folder` as the working directory; PyTorch's thread count is put back at the end."""
    import torch

    threads = torch.get_num_threads()
    with contextlib.chdir(folder):
        yield
    torch.set_num_threads(threads)
