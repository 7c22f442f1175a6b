"""The architecture study: variants of one small mixture of experts x seeds, at equal FLOPs; records, tables, pictures.

    python recipes/study/architecture.py run [VARIANT ...] --out runs/architecture      what is finished is skipped
    python recipes/study/architecture.py report --out docs/studies/architecture         tables on stdout, pictures there

Each variant is the base recipe (architecture.toml, or another with --base) with a few values changed. All spend the
same C = M D: one with a larger M gets fewer tokens. One process per GPU; every run leaves one line in records.jsonl.
"""

import argparse
import json
import math
import multiprocessing
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from isoflop.errors import IsoflopError

BASE = Path(__file__).with_suffix(".toml")
SEEDS = (0, 1, 2)
LAST = 5
"""Values of MaxVio, 50 steps apart, whose mean is that of the end of training."""
STUDENT_90 = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015}  # two-sided 90% quantile by degrees of freedom

NO_BIAS = ("model.experts.selection_bias=false", "train.balance.bias_speed=0.0")
VARIANTS = ("loss-free", "aux-loss", "unbalanced", "mtp", "gqa", "mla", "dense")
QUESTIONS = {
    "balance": ("loss-free", "aux-loss", "unbalanced"),
    "multi-token prediction": ("loss-free", "mtp"),
    "attention": ("loss-free", "gqa", "mla"),
    "experts": ("loss-free", "dense"),
}


def changes(variant: str, model: Any) -> tuple[str, ...]:
    """What a variant changes in the base recipe; sizes follow those of the base's model."""
    return {
        "loss-free": (),
        "aux-loss": (*NO_BIAS, "train.balance.expert_loss=0.001"),
        "unbalanced": NO_BIAS,
        "mtp": ("model.mtp_depth=1",),
        "gqa": (f"model.n_kv_heads={max(1, model.n_heads // 4)}",),
        "mla": (  # as wide per head as the base, beside half a head for positions
            f"model.d_head={model.d_head * 3 // 2}",
            f"model.latent.d_kv_latent={model.d_model // 2}",
            f"model.latent.d_nope={model.d_head}",
            f"model.latent.d_rope={model.d_head // 2}",
            f"model.latent.d_value={model.d_head}",
        ),
        "dense": (),  # the base without its experts, d_ff as wide as all that a token uses
    }[variant]


def recipe_of(variant: str, seed: int, base_path: Path, overrides: list[str]) -> Any:
    """The pretrain recipe of one run, its tokens set so that C = M D is the base's."""
    import dataclasses

    from isoflop.model.accounting import flops_per_token
    from isoflop.recipe import load_recipe
    from isoflop.training.pretrain.recipe import PretrainRecipe, with_train

    base = load_recipe(base_path, PretrainRecipe, overrides)
    recipe = load_recipe(base_path, PretrainRecipe, [*overrides, *changes(variant, base.model)])
    if variant == "dense":
        experts = base.model.experts
        assert experts is not None
        width = (experts.n_active + experts.n_shared) * experts.d_expert
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, experts=None, d_ff=width))
        recipe = with_train(recipe, balance=None)
    share = flops_per_token(base.model, "M") / flops_per_token(recipe.model, "M")
    steps = round(base.n_steps() * share)
    return with_train(recipe, n_tokens=steps * recipe.train.batch_tokens, seed=seed)


def work(number: int, jobs: Any, answers: Any, out: Path, base: Path, overrides: list[str]) -> None:
    """Take jobs until there are none; the GPU follows from the number of the process."""
    import torch

    from isoflop.model.accounting import count_parameters
    from isoflop.training.pretrain.workload import run_pretrain

    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(number % torch.cuda.device_count())
    while (job := jobs.get()) is not None:
        variant, seed = job
        recipe, folder = recipe_of(variant, seed, base, overrides), out / f"{variant}-{seed}"
        result = run_pretrain(recipe, folder)
        count = count_parameters(recipe.model)
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        loads = [line for line in lines if "expert_load" in line]
        record = {
            "variant": variant,
            "seed": seed,
            **{key: result.get(key) for key in ("status", "bits_per_byte", "loss_nats", "max_violation_global")},
            **{key: result[key] for key in ("n_tokens", "total_flops", "wall_s", "device", "torch", "commit")},
            **{key: result[key] for key in ("data_sha256", "started_at", "finished_at")},
            "n_params_total": count.n_params_total,
            "n_params_active": count.n_params_active,
            # the mean over layers, every 50 steps: what the picture needs
            "max_violation": [
                (line["step"], statistics.fmean(line["expert_load"]["max_violation"]))
                for line in loads
                if line["step"] % 50 == 0
            ],
        }
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        answers.put(record)


def run(out: Path, variants: list[str], base: Path, overrides: list[str]) -> None:
    """Train what records.jsonl does not hold yet."""
    import torch

    records = out / "records.jsonl"
    done = {(row["variant"], row["seed"]) for row in read(records)} if records.is_file() else set()
    wanted = [(variant, seed) for seed in SEEDS for variant in variants if (variant, seed) not in done]
    for variant, seed in wanted:
        recipe_of(variant, seed, base, overrides)  # bad input is said before processes start
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    jobs, answers = context.Queue(), context.Queue()
    n_workers = min(max(1, torch.cuda.device_count()), len(wanted))
    for job in [*wanted, *[None] * n_workers]:
        jobs.put(job)
    workers = [
        context.Process(target=work, args=(n, jobs, answers, out, base, overrides), daemon=True)
        for n in range(n_workers)
    ]
    for worker in workers:
        worker.start()
    for _ in wanted:
        while answers.empty():
            if not any(worker.is_alive() for worker in workers):
                raise SystemExit("a run failed; what is finished is in records.jsonl, the same command goes on")
            workers[0].join(timeout=0.5)
        record = answers.get()
        with records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{record['variant']:12} seed {record['seed']}: {record['bits_per_byte']:.4f} bits per byte", flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """One dictionary per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 90% interval (Student's t; nan below two values)."""
    if len(values) < 2:
        return values[0], math.nan
    half = STUDENT_90[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def report(out: Path) -> None:
    """Markdown tables of every question, differences paired by seed, and the pictures."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for row in read(out / "records.jsonl"):
        runs.setdefault(row["variant"], {})[row["seed"]] = row
    for question, names in QUESTIONS.items():
        found = [name for name in names if name in runs]
        if len(found) < 2:
            continue
        print(
            f"\n**{question}**\n\n| variant | seeds | nats per token | against {found[0]} | MaxVio in training | "
            "MaxVio of validation | active / total |"
        )
        print("|---|---|---|---|---|---|---|")
        for name in found:
            rows = runs[name]
            mean, half = interval([row["loss_nats"] for row in rows.values()])
            pairs = [rows[seed]["loss_nats"] - runs[found[0]][seed]["loss_nats"] for seed in rows]
            difference, spread = interval(pairs)
            beside = "" if name == found[0] else f"{difference:+.4f} +/- {spread:.4f}"
            violations = [row["max_violation_global"] for row in rows.values() if row["max_violation_global"]]
            violation = f"{statistics.fmean(violations):.2f}" if violations else "-"
            last = [value for row in rows.values() for _, value in row["max_violation"][-LAST:]]
            training = f"{statistics.fmean(last):.2f}" if last else "-"
            one = next(iter(rows.values()))
            size = f"{one['n_params_active'] / 1e6:.1f}M / {one['n_params_total'] / 1e6:.1f}M"
            print(
                f"| {name} | {len(rows)} | {mean:.4f} +/- {half:.4f} | {beside} | {training} | {violation} | {size} |"
            )
    draw(out, runs)


def draw(out: Path, runs: dict[str, dict[int, dict[str, Any]]]) -> None:
    """MaxVio over the steps, and validation losses of every run."""
    from isoflop.pages.plot import light_grid, new_figure, style

    with style():
        figure = new_figure(4.2)
        left, right = figure.subplots(1, 2)
        for index, name in enumerate(QUESTIONS["balance"]):
            for row in runs.get(name, {}).values():
                steps, violations = zip(*row["max_violation"])
                label = name if row["seed"] == min(runs[name]) else None
                left.plot(steps, violations, color=f"C{index}", linewidth=1.4, alpha=0.8, label=label)
        left.set_yscale("log")
        left.set_xlabel("optimizer step")
        left.set_ylabel("MaxVio of a batch, mean over layers")
        left.legend(frameon=False)
        names = [name for name in VARIANTS if name in runs]
        for place, name in enumerate(names):
            losses = [row["loss_nats"] for row in runs[name].values()]
            right.plot([place] * len(losses), losses, "o", color="C0", markersize=5, alpha=0.8)
            right.plot([place - 0.25, place + 0.25], [statistics.fmean(losses)] * 2, color="C1", linewidth=2)
        right.set_xticks(range(len(names)), labels=names, rotation=35, ha="right")
        right.set_ylabel("validation loss (nats per token)")
        light_grid(left, "y")
        light_grid(right, "y")
        figure.savefig(out / "architecture.png", dpi=150)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("run", "report"))
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)}; all by default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=BASE, help="recipe that every variant changes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override of the base recipe")
    arguments = parser.parse_args()
    unknown = set(arguments.variants) - set(VARIANTS)
    if unknown:
        parser.error(f"no variant {sorted(unknown)[0]}; there are {', '.join(VARIANTS)}")
    if arguments.stage == "report":
        report(arguments.out)
    else:
        run(arguments.out, arguments.variants or list(VARIANTS), arguments.base, arguments.set)


if __name__ == "__main__":
    try:
        main()
    except IsoflopError as error:
        sys.exit(f"error: {error}")
