"""The commands that make an assistant of a base model: sft, dpo, reward, and all of it in one call, align demo."""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from isoflop.cli.arguments import Json, Out, Overrides, Recipe, load_recipe
from isoflop.cli.console import Bar, flat, report_found, say, shown, stop_on_signal
from isoflop.errors import IsoflopError, RecipeError
from isoflop.recipe import Seed

DryRun = Annotated[bool, Parameter(help="read the data, print the derived plan, touch no device")]


def sft(
    recipe: Recipe,
    /,
    *overrides: Overrides,
    stage: Annotated[Literal[0, 1, 2], Parameter(help="1 or 2 alone of a recipe with [second]; 0: all")] = 0,
    dry_run: DryRun = False,
    out: Out = Path("runs/sft"),
    json: Json = None,
) -> None:
    """Conversations -> a model that answers and stops; resumes by itself; Ctrl-C saves and leaves."""
    from isoflop.alignment.recipe import SftRecipe
    from isoflop.alignment.sft import SftJob, run_sft

    _one_process("sft")
    loaded = load_recipe(recipe, SftRecipe, overrides)
    if dry_run:
        _plan(SftJob(loaded, out), json)
        return
    _run(lambda **watch: run_sft(loaded, out, stage=stage, **watch), out, json)


def dpo(
    recipe: Recipe, /, *overrides: Overrides, dry_run: DryRun = False, out: Out = Path("runs/dpo"), json: Json = None
) -> None:
    """Preference pairs -> a model that prefers the better answer; resumes by itself; Ctrl-C saves and leaves."""
    from isoflop.alignment.dpo import DpoJob, run_dpo
    from isoflop.alignment.recipe import DpoRecipe

    _one_process("dpo")
    loaded = load_recipe(recipe, DpoRecipe, overrides)
    if dry_run:
        _plan(DpoJob(loaded, out), json)
        return
    _run(lambda **watch: run_dpo(loaded, out, **watch), out, json)


def reward(
    recipe: Recipe, /, *overrides: Overrides, dry_run: DryRun = False, out: Out = Path("runs/reward"), json: Json = None
) -> None:
    """Preference pairs -> a model that scores answers; resumes by itself; Ctrl-C saves and leaves."""
    from isoflop.alignment.recipe import RewardRecipe
    from isoflop.alignment.reward_model import RewardJob, run_reward

    _one_process("reward")
    loaded = load_recipe(recipe, RewardRecipe, overrides)
    if dry_run:
        _plan(RewardJob(loaded, out), json)
        return
    _run(lambda **watch: run_reward(loaded, out, **watch), out, json)


def align_demo(
    *,
    out: Out = Path("align"),
    data: Annotated[
        Path | None, Parameter(metavar="DIR", help="folder with sft/ and preference/; default: made here")
    ] = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """A base model, SFT in two stages and DPO on this machine, with a page of what each stage changed."""
    from isoflop.alignment.demo import run_demo

    _one_process("align demo")
    with stop_on_signal() as stop:
        found = run_demo(out, data=data, seed=seed, say=say, bar=Bar, should_stop=stop)
    report_found(found, json, f"report in {out / 'report.html'}", list(flat(found)))


def _one_process(command: str) -> None:
    """Raises RecipeError where a launcher such as torchrun has started several processes of one command."""
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not (rank.isdigit() and world.isdigit() and "LOCAL_RANK" in os.environ) or int(world) < 2:
        return
    if int(rank):  # the first one speaks for all; ending well, so that the launcher lets it
        sys.exit(0)
    raise RecipeError(
        f"isoflop {command} was started as {world} processes (WORLD_SIZE = {world}), and it trains in one: start it "
        "without torchrun; train.micro_tokens fits a batch into one device, and gives the same numbers"
    )


def _plan(job: Any, json: Path | None) -> None:
    from isoflop.alignment.memory import adapter_memory
    from isoflop.model.accounting import flops_per_token, inspect

    config, t = job.start.config, job.recipe.train
    samples, micro_batch = job.samples.summary, max(1, (t.micro_tokens or 16_384) // config.seq_len)
    n_tokens = round(t.epochs * samples["tokens"])
    found = {
        "steps": job.plan.n_steps,
        "samples": {key: value for key, value in samples.items() if key != "lengths"},
        "template": job.start.template.name,
        "stop_ids": list(job.start.template.stop_ids),
        "n_tokens": n_tokens,
        "total_flops_exact": flops_per_token(config, "exact") * n_tokens,
        **inspect(config, micro_batch=micro_batch),
    }
    if job.recipe.adapter:
        where = {"precision": found["memory"]["precision"], "micro_tokens": micro_batch * config.seq_len}
        found["memory"] |= dataclasses.asdict(adapter_memory(config, job.recipe.adapter, **where))
    report_found(found, json, "nothing was run", list(flat(found)))


def _run(train: Callable[..., dict[str, Any]], out: Path, json: Path | None) -> None:
    from isoflop.run import only_one, require_run_folder

    if not any((out / f"stage{number}").is_dir() for number in (1, 2)):
        require_run_folder(out)
    with Bar("token") as bar, stop_on_signal() as stop, only_one(out):
        found = train(on_progress=bar.training, should_stop=stop)
    keys = ("status", "step", "loss_nats", "accuracy", "stop_share", "repetition_ratio", "train_loss_nats")
    rows = [(key, shown(found[key])) for key in keys if key in found]
    rows += list(flat(found.get("validation", {}), "validation."))
    report_found(found, json, f"run in {out}", rows)
    if found["status"] == "interrupted":
        raise KeyboardInterrupt
    if found["status"] == "diverged":
        raise IsoflopError(
            f"{out} diverged at step {found['step']} (loss is not finite): lower train.learning_rate or raise "
            "train.warmup_share; the last checkpoint before it is kept"
        )
