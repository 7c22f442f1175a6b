"""The commands that train a model, make its context longer, and ask it for what it read: train, extend, passkey."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from isoflop.cli.arguments import Json, Out, Overrides, Recipe, Writes, load_recipe
from isoflop.cli.console import Bar, flat, print_table, report_found, shown, stop_on_signal
from isoflop.errors import CheckpointError, IsoflopError
from isoflop.recipe import NotNegativeInt, PositiveInt, Seed, Share, write_json

if TYPE_CHECKING:
    from isoflop.training.monitor import Progress
    from isoflop.training.pretrain.recipe import PretrainRecipe


def inspect(
    recipe: Recipe,
    /,
    *overrides: Overrides,
    micro_batch: Annotated[PositiveInt, Parameter(help="sequences of a forward pass, for the memory estimate")] = 1,
    world_size: Annotated[PositiveInt, Parameter(help="devices that share the optimizer state")] = 1,
    json: Json = None,
) -> None:
    """Count a model: parameters, FLOPs per token by convention, memory, KV bytes per token."""
    from isoflop.model.accounting import inspect as count
    from isoflop.training.pretrain.recipe import PretrainRecipe

    loaded = load_recipe(recipe, PretrainRecipe, overrides)
    found = count(loaded.model, micro_batch=micro_batch, world_size=world_size, **loaded.computed_as())
    report_found(found, json, f"{recipe}", list(flat(found)))


def train(
    recipe: Recipe,
    /,
    *overrides: Overrides,
    dry_run: Annotated[bool, Parameter(help="print the derived plan, touch no device")] = False,
    tensorboard: Annotated[bool, Parameter(help="write event files to OUT/tensorboard too")] = False,
    out: Out = Path("runs/train"),
    json: Json = None,
) -> None:
    """Run a pretrain recipe; resumes by itself; Ctrl-C saves and leaves."""
    from isoflop.model.accounting import inspect as count
    from isoflop.training.pretrain.recipe import PretrainRecipe, check

    loaded = load_recipe(recipe, PretrainRecipe, overrides)
    check(loaded)
    if dry_run:
        _check_dry(loaded)
        t = loaded.train
        micro_batch = t.micro_batch or t.batch_tokens // loaded.model.seq_len
        counted = count(loaded.model, micro_batch=micro_batch, **loaded.computed_as())
        total = counted["flops_per_token"]["exact"] * t.n_tokens
        found = {"steps": loaded.n_steps(), "total_flops_exact": total, **loaded.formats(), **counted}
        report_found(found, json, "nothing was run", list(flat(found)))
        return
    _run(loaded, out, tensorboard, json)


def extend(
    recipe: Recipe,
    /,
    *overrides: Overrides,
    dry_run: Annotated[bool, Parameter(help="print the derived plan; the model is built on the meta device")] = False,
    tensorboard: Annotated[bool, Parameter(help="write event files to OUT/tensorboard too")] = False,
    out: Out = Path("runs/extend"),
    json: Json = None,
) -> None:
    """A trained run -> the same model at a longer context (YaRN); resumes by itself; Ctrl-C saves and leaves."""
    from isoflop.training.pretrain.extend import ExtendRecipe, extension, require_weights
    from isoflop.training.pretrain.extend import dry_run as count

    asked = load_recipe(recipe, ExtendRecipe, overrides)
    made = extension(asked)
    if dry_run:
        _check_dry(made)
        found = count(made)
        report_found(found, json, "nothing was run", list(flat(found)))
        return
    require_weights(made, asked.extend.run)
    _run(made, out, tensorboard, json)


def passkey(
    run: Annotated[Path, Parameter(metavar="RUN", help="folder of train or extend")],
    /,
    *,
    before: Annotated[Path | None, Parameter(metavar="RUN", help="the run it was extended from")] = None,
    lengths: Annotated[
        tuple[PositiveInt, ...], Parameter(consume_multiple=True, help="tokens; default: doubling to the run's context")
    ] = (),
    depths: Annotated[tuple[Share, ...], Parameter(consume_multiple=True, help="places of the key, 0 to 1")] = (
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
    ),
    trials: Annotated[PositiveInt, Parameter(help="questions per length and depth")] = 50,
    tokens: Annotated[
        Path | None, Parameter(metavar="DIR", help="tokenizer and held-out text; default: those of RUN")
    ] = None,
    max_tokens: Annotated[NotNegativeInt, Parameter(help="of held-out text per domain; 0: all")] = 200_000,
    seed: Seed = 0,
    device: Annotated[str, Parameter(help="auto, cpu, cuda")] = "auto",
    out: Annotated[Path | None, Writes("folder"), Parameter(metavar="DIR", help="default: RUN/passkey")] = None,
    json: Json = None,
) -> None:
    """A run -> keys found over context length and depth, perplexity inside the trained length, a picture."""
    from isoflop.evaluation.passkey import compare_context
    from isoflop.evaluation.passkey_figure import passkey_figure
    from isoflop.pages.plot import save

    with Bar("cell") as bar:
        found = compare_context(
            run,
            before=before,
            tokens=tokens,
            lengths=lengths,
            depths=depths,
            n_trials=trials,
            max_tokens=max_tokens,
            seed=seed,
            device=device,
            on_progress=bar.stage,
        )
    out = out or run / "passkey"
    write_json(out / "passkey.json", found)
    figure = passkey_figure(found)
    for ending in ("svg", "png"):
        save(figure, out / f"passkey.{ending}")
    report_found(found, json, f"records and picture in {out}", list(flat(found["summary"])))
    print_table(found["cells"])


def _check_dry(recipe: "PretrainRecipe") -> None:
    """What a run would refuse before its first step, as far as it can be known without a device."""
    from isoflop.training.checkpoint import damage
    from isoflop.training.pretrain.workload import check_data, check_layers

    check_layers(recipe)
    if recipe.initial is not None and (problem := damage(Path(recipe.initial.checkpoint))):
        raise CheckpointError(f"initial.checkpoint: {problem}; give another checkpoint")
    if Path(recipe.data.tokens).exists():  # else it may be on the machine that will train
        check_data(recipe)


def _run(recipe: "PretrainRecipe", out: Path, tensorboard: bool, json: Path | None) -> None:
    from isoflop.run import only_one, require_run_folder
    from isoflop.training.checkpoint import saved
    from isoflop.training.pretrain.workload import run_pretrain
    from isoflop.training.tensorboard import Board

    require_run_folder(out)
    board = Board(out) if tensorboard else None
    with Bar("token") as bar, stop_on_signal() as stop, only_one(out):

        def show(progress: "Progress") -> None:
            bar.training(progress)
            if board is not None:
                board.write(progress)

        found = run_pretrain(recipe, out, on_progress=show, should_stop=stop)
    if board is not None:
        board.close()
    rows = [(key, shown(found[key])) for key in ("status", "step", "n_tokens", "train_loss_nats", "tokens_per_s")]
    rows += [(key, shown(found[key])) for key in ("loss_nats", "bits_per_byte") if key in found]
    report_found(found, json, f"run in {out}", rows)
    if found["status"] == "interrupted":
        raise KeyboardInterrupt
    if found["status"] == "diverged":
        kept = "; the last checkpoint before it is kept" if saved(out / "checkpoints") else ""
        raise IsoflopError(
            f"{out} diverged at step {found['step']} (loss is not finite): lower train.learning_rate or raise "
            f"train.warmup_steps, and look at train.weight_decay and model.init_std{kept}"
        )
