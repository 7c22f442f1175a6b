"""The language-model workload: a recipe and a tokens folder in, checkpoints and `result.json` out.

`run_pretrain` is what `isoflop train` and every cell of a sweep call. A constant-then-cooldown run may start from a
checkpoint of a longer one (its trunk): up to the cooldown both compute the same thing, bit for bit.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import CheckpointError, DataError, RecipeError
from isoflop.model.accounting import flops_per_token
from isoflop.model.attention import fastest_kernels
from isoflop.model.transformer import Transformer
from isoflop.numerics.assign import assign, assignable, match_rules
from isoflop.numerics.launch import has_kernels
from isoflop.numerics.noise import VALIDATION, Clock
from isoflop.numerics.section import numerics_text
from isoflop.recipe import to_tree, write_json, write_recipe
from isoflop.run import commit, now, processor
from isoflop.tokens.batches import Batches
from isoflop.tokens.shards import TokenSet
from isoflop.training import checkpoint
from isoflop.training.clipping import watch_clipping
from isoflop.training.loop import LoopResult, Saving, train
from isoflop.training.monitor import Progress, peak_flops_per_s
from isoflop.training.optim import optimizer_of
from isoflop.training.pretrain_recipe import (
    BalanceSection,
    InitialSection,
    MtpSection,
    PretrainRecipe,
    check,
    check_device,
)
from isoflop.training.schedule import cooldown_start, factor
from isoflop.training.terms import StepTerms
from isoflop.training.validate import validate
from isoflop.training.workload import Loss

log = logging.getLogger(__name__)


class LanguageModel:
    """Workload: next-token loss on windows of a tokens folder, with the terms that the model's parts need."""

    def __init__(self, recipe: PretrainRecipe, token_set: TokenSet, terms: StepTerms | None = None):
        config, t = recipe.model, recipe.train
        self._terms = terms
        self.tokens_per_step = t.batch_tokens
        self._micro_batch = t.micro_batch or t.batch_tokens // config.seq_len
        self._token_set = token_set
        self._batches = Batches(
            token_set,
            seq_len=config.seq_len,
            batch_sequences=t.batch_tokens // config.seq_len,
            seed=t.seed,
            weights=recipe.data.weights or None,
            curriculum=_stages(recipe),
        )
        self._max_validation_tokens = recipe.validate.max_tokens
        self._windows: dict[str, list[tuple[Tensor, Tensor, int]]] | None = None
        self.unique_tokens = self._batches.n_unique_tokens
        self.epochs = self._batches.epochs(t.n_tokens)

    def batch(self, step: int) -> list[tuple[Tensor, ...]]:
        windows_BT = torch.from_numpy(self._batches.batch(step))
        return [(part,) for part in windows_BT.split(self._micro_batch)]

    def loss_sum(self, model: nn.Module, micro_batch: tuple[Tensor, ...]) -> Tensor | Loss:
        (windows_BT,) = micro_batch
        assert isinstance(model, Transformer)
        tokens_BT, targets_BT = windows_BT[:, :-1], windows_BT[:, 1:]
        if self._terms is None:
            return model.loss_sum(tokens_BT, targets_BT)
        losses = model.losses(tokens_BT, targets_BT)
        return Loss(self._terms.objective(losses), losses.nats)

    def validate(self, model: nn.Module) -> dict[str, object]:
        assert isinstance(model, Transformer)
        if self._windows is None:
            self._windows = {
                domain: [
                    (torch.from_numpy(w.tokens), torch.from_numpy(w.counted), w.n_bytes)
                    for w in self._batches.valid_windows(domain, max_tokens=self._max_validation_tokens)
                ]
                for domain in self._token_set.domains("valid")
            }
        return validate(model, self._windows)


def run_pretrain(
    recipe: PretrainRecipe,
    run_dir: Path,
    *,
    start_from: Path | None = None,
    stop_at: int | None = None,
    keep_steps: frozenset[int] = frozenset(),
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train as the recipe says and return what `run_dir`/result.json holds; resumes what it finds there.

    `start_from` is a checkpoint folder of a trunk that this run continues; `stop_at` ends after that many optimizer
    steps (a trunk); checkpoints at `keep_steps` are kept.

    Raises:
        RecipeError: bad values, or a run folder that holds another recipe.
        DataError: tokens missing or made with another tokenizer.
        CheckpointError: all checkpoints damaged, or the disk is full.
    """
    check(recipe)
    token_set = _open_tokens(recipe)
    trajectory = trajectory_of(recipe, token_set)
    result_path = run_dir / "result.json"
    if result_path.is_file() and stop_at is None:
        finished = json.loads(result_path.read_text(encoding="utf-8"))
        if finished.get("trajectory") == trajectory and finished.get("n_steps") == recipe.n_steps():
            log.info("%s is finished already; delete the folder to run it again", run_dir)
            return finished
    started_at = now()
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    device = choose_device(recipe.train.device)
    dtype = _precision(recipe.train.precision, device)
    document_start = None if recipe.data.cross_document else token_set.tokenizer.bos_id
    model = Transformer(recipe.model, dtype, document_start).to(device)
    t = recipe.train
    clock = None
    if recipe.numerics is not None:
        clock = Clock(t.seed, recipe.numerics.seed)
        assign(model, recipe.numerics, clock)
    settings = {"learning_rate": t.learning_rate, "eps": t.eps, "weight_decay": t.weight_decay}
    optimizer = optimizer_of(model, t.optimizer, betas=(t.beta1, t.beta2), **settings)
    n_steps = recipe.n_steps()
    own = checkpoint.newest(run_dir / "checkpoints")
    found = own or start_from
    start_step = first_step = 0
    earlier_s = 0.0
    if found is None and recipe.initial is not None:
        _take_weights(recipe.initial, model)
    elif found is None:
        model.initialise(torch.Generator().manual_seed(t.seed))
    else:
        if own is None and (problem := checkpoint.damage(found)):
            raise CheckpointError(f"the run cannot start from {found}: {problem}; train that trunk again")
        state = checkpoint.load(found, model, optimizer)
        start_step = state["step"]
        _check_continues(state, trajectory, start_step, recipe, found)
        first_step = state["first_step"] if own else start_step
        if own:
            started_at, earlier_s = state["started_at"], state["wall_s"]
    needed = recipe.model.experts is not None or recipe.model.mtp_depth > 0
    balance, mtp = t.balance or BalanceSection(), t.mtp or MtpSection()
    terms = StepTerms(model, balance, mtp, batch_tokens=t.batch_tokens) if needed else None
    workload = LanguageModel(recipe, token_set, terms)
    write_recipe(run_dir / "recipe.toml", recipe, header="resolved recipe of this run")
    exact = flops_per_token(recipe.model, "exact")
    if _should_compile(recipe, model, exact * t.n_tokens):
        for block in model.all_blocks():
            block.compile(dynamic=False)
    peak, peak_source = peak_flops_per_s(device, dtype)
    with fastest_kernels(device):
        loop = train(
            workload,
            model,
            optimizer,
            rate=lambda step: (
                t.learning_rate
                * factor(
                    step,
                    n_steps=n_steps,
                    warmup_steps=t.warmup_steps,
                    schedule=t.schedule,
                    cooldown_fraction=t.cooldown_fraction,
                )
            ),
            n_steps=n_steps,
            run_dir=run_dir,
            saving=Saving(
                recipe.checkpoint.every_steps,
                recipe.checkpoint.every_s,
                recipe.checkpoint.keep,
                at_steps=keep_steps,
            ),
            state={
                "trajectory": trajectory,
                "n_steps": n_steps,
                "schedule": t.schedule,
                "cooldown_fraction": t.cooldown_fraction,
                "first_step": first_step,
                "started_at": started_at,
                "wall_s": earlier_s,
            },
            start_step=start_step,
            stop_at=stop_at,
            clip_norm=t.clip_norm,
            validate_every=recipe.validate.every_steps,
            flops_per_token=exact,
            peak_flops_per_s=peak,
            graph=t.cuda_graph,
            terms=watch_clipping(model, terms),
            clock=clock,
            on_progress=on_progress,
            should_stop=should_stop,
        )
    result = _result(recipe, workload, token_set, loop, device, dtype, trajectory, first_step, started_at)
    result["wall_s"] = earlier_s + loop.wall_s
    result["peak_flops_per_s"], result["peak_source"] = peak, peak_source
    if loop.status == "finished":
        if clock is not None:
            clock.set(loop.step, VALIDATION)
        result.update(workload.validate(model))
        if not math.isfinite(result["loss_nats"]):
            result["status"] = "diverged"
    if result["status"] in ("finished", "diverged"):
        write_json(result_path, result)
    return result


def check_data(recipe: PretrainRecipe) -> None:
    """Whether tokenizer, vocabulary, domains and windows of the tokens folder suit the recipe; no device is touched.

    Raises:
        DataError: a folder that is damaged, or made with another tokenizer.
        RecipeError: weights of a domain that it lacks, or windows longer than its text.
    """
    LanguageModel(recipe, _open_tokens(recipe))


def check_layers(recipe: PretrainRecipe) -> None:
    """Whether every rule of number formats names a layer of the model, which is built on the meta device only.

    Raises:
        RecipeError: a rule that matches none.
    """
    if recipe.numerics is not None:
        with torch.device("meta"):
            match_rules(assignable(Transformer(recipe.model)), recipe.numerics)


def trajectory_of(recipe: PretrainRecipe, token_set: TokenSet) -> str:
    """Hash of all that decides the numbers of a run, except how long its constant-rate stage goes on."""
    tree = to_tree(recipe)
    t = dict(tree["train"])
    for key in ("device", "micro_batch", "compile", "cuda_graph", "threads"):  # where it runs, not what is asked for
        t.pop(key)
    model = dict(tree["model"])
    if recipe.model.experts is not None:  # written out or not, the values decide
        t["balance"] = to_tree(recipe.train.balance or BalanceSection())
        t["balance"].pop("report_every")
    if recipe.model.mtp_depth:
        t["mtp"] = to_tree(recipe.train.mtp or MtpSection())
    else:
        model.pop("mtp_depth")  # a model without it has the trajectory it always had
    if recipe.train.schedule == "constant_cooldown":
        if not recipe.data.curriculum:  # its stages begin at shares of the whole run
            t.pop("n_tokens")
        t.pop("cooldown_fraction")
    data: dict[str, Any] = {"weights": tree["data"].get("weights", {}), "tokens": token_set.data_sha256}
    if not recipe.data.cross_document:
        data["cross_document"] = False
    if recipe.data.curriculum:
        data["curriculum"] = tree["data"]["curriculum"]
    decides = {"model": model, "train": t, "data": data}
    if recipe.initial is not None:
        decides["initial"] = recipe.initial.model_sha256
    if recipe.numerics is not None:
        decides["numerics"] = to_tree(recipe.numerics)
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _stages(recipe: PretrainRecipe) -> list[tuple[int, dict[str, float]]]:
    """(first sequence, weights) of each stage of the curriculum."""
    n_sequences = recipe.n_steps() * recipe.train.batch_tokens // recipe.model.seq_len
    return [(round(stage.from_share * n_sequences), stage.weights) for stage in recipe.data.curriculum]


def _take_weights(initial: InitialSection, model: Transformer) -> None:
    folder = Path(initial.checkpoint)
    if problem := checkpoint.damage(folder):
        raise CheckpointError(f"initial.checkpoint: {problem}; train that run again, or give another checkpoint")
    state = checkpoint.load(folder, model, None)
    if (found := state["sha256"]["model.safetensors"]) != initial.model_sha256:
        raise CheckpointError(
            f"initial.checkpoint = {initial.checkpoint} has weights {found[:12]}, initial.model_sha256 asks for "
            f"{initial.model_sha256[:12]}; give the checkpoint that the recipe was made for"
        )


def _check_continues(state: dict[str, Any], trajectory: str, step: int, recipe: PretrainRecipe, found: Path) -> None:
    n_steps = recipe.n_steps()
    if state["trajectory"] != trajectory:
        raise CheckpointError(
            f"{found} was trained with another recipe or other data than this one; "
            f"use the recipe.toml beside it, or another run folder"
        )
    fraction = recipe.train.cooldown_fraction
    trained, asked = (state["n_steps"], state.get("cooldown_fraction", fraction)), (n_steps, fraction)
    if trained != asked:
        limit = min(cooldown_start(*trained), cooldown_start(*asked))  # beyond it one of the two has cooled down
        if recipe.train.schedule != "constant_cooldown" or step > limit:
            raise CheckpointError(
                f"{found} is at step {step} of a run of {state['n_steps']} steps, this recipe has {n_steps}; "
                f"only constant_cooldown runs share a trunk, up to the cooldown of the shorter one (step {limit}); "
                f"give another run folder"
            )


def _open_tokens(recipe: PretrainRecipe) -> TokenSet:
    token_set = TokenSet.open(Path(recipe.data.tokens))
    wanted = recipe.data.tokenizer_sha256
    if wanted and wanted != token_set.tokenizer_sha256:
        raise DataError(
            f"data.tokenizer_sha256 = {wanted[:12]}... but {recipe.data.tokens} was made with the tokenizer "
            f"{token_set.tokenizer_sha256[:12]}...: the recipe is for another tokenizer; "
            f"give data.tokens the folder it was planned on, or plan again"
        )
    if recipe.model.vocab_size != token_set.vocab_size:
        raise DataError(
            f"model.vocab_size = {recipe.model.vocab_size} but the tokenizer of {recipe.data.tokens} has "
            f"{token_set.vocab_size} rows (padding included); set model.vocab_size = {token_set.vocab_size}"
        )
    return token_set


def choose_device(name: str, key: str = "train.device") -> torch.device:
    """auto, cpu, cuda, cuda:1 ... as a device that is there. Raises RecipeError naming `key`."""
    check_device(name, key)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"{key} = {name!r} but PyTorch sees no GPU here; use auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"{key} = {name!r} but PyTorch sees {torch.cuda.device_count()} GPU(s), from cuda:0 on")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RecipeError(f"{key} = {name!r} but PyTorch sees no Apple GPU here; use auto or cpu")
    return device


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _should_compile(recipe: PretrainRecipe, model: Transformer, total_flops: float) -> bool:
    if recipe.train.compile == "auto":
        return compiles(model) and total_flops > 2e15  # below, compiling takes longer than it saves
    return recipe.train.compile == "on"


def compiles(model: Transformer) -> bool:
    """Whether compiled blocks of a long run are faster: on a GPU, where our own kernels do not join the steps already.

    Measured for dense blocks, mixtures and small cells (docs/log.md 2026-11-29): then compiling costs time only.
    """
    weight = model.embedding.weight
    return weight.is_cuda and not has_kernels(torch.empty(0, dtype=model.dtype, device=weight.device))


def _result(
    recipe: PretrainRecipe,
    workload: LanguageModel,
    token_set: TokenSet,
    loop: LoopResult,
    device: torch.device,
    dtype: torch.dtype,
    trajectory: str,
    first_step: int,
    started_at: str,
) -> dict[str, Any]:
    scale, exact = flops_per_token(recipe.model, "M"), flops_per_token(recipe.model, "exact")
    n_tokens = loop.step * recipe.train.batch_tokens
    return {
        "status": loop.status,
        "step": loop.step,
        "n_steps": recipe.n_steps(),
        "n_tokens": n_tokens,
        "start_step": first_step,
        "flops_per_token": scale,
        "flops_per_token_exact": exact,
        "total_flops": scale * n_tokens,
        "total_flops_exact": exact * n_tokens,
        "train_loss_nats": loop.train_loss_nats,
        "wall_s": loop.wall_s,
        "tokens_per_s": loop.tokens / loop.wall_s if loop.wall_s else None,
        "data_wait_share": loop.data_wait_s / loop.wall_s if loop.wall_s else None,
        "unique_tokens": workload.unique_tokens,
        "epochs": workload.epochs,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "precision": str(dtype).removeprefix("torch."),
        "numerics": numerics_text(recipe.numerics, str(dtype).removeprefix("torch.")),
        "torch": torch.__version__,
        "tokenizer_sha256": token_set.tokenizer_sha256,
        "data_sha256": token_set.data_sha256,
        "trajectory": trajectory,
        "commit": commit(),
        "started_at": started_at,
        "finished_at": now(),
    }
