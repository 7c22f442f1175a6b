"""The language-model workload: a recipe and a tokens folder in, checkpoints and `result.json` out.

`run_pretrain` is what `isoflop train` and every cell of a sweep call. A constant-then-cooldown run may start from a
checkpoint of a longer one (its trunk): up to the cooldown both compute the same thing, bit for bit.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoflop.errors import CheckpointError, DataError
from isoflop.model.accounting import flops_per_token
from isoflop.model.transformer import Transformer
from isoflop.numerics.assign import assign, assignable, match_rules
from isoflop.numerics.launch import has_kernels
from isoflop.numerics.noise import NoiseKey
from isoflop.numerics.section import numerics_text
from isoflop.recipe import to_tree
from isoflop.tokens.batches import Batches
from isoflop.tokens.shards import TokenSet
from isoflop.training import checkpoint
from isoflop.training.checkpoint import Saving
from isoflop.training.device import choose_device, choose_dtype
from isoflop.training.forecast import BLOCKS, Interval, LossForecast
from isoflop.training.load_run import keep_tokenizer, require_tokenizer_of
from isoflop.training.loop import StepPlan
from isoflop.training.monitor import Progress
from isoflop.training.optim import optimizer_of
from isoflop.training.pretrain.difficulty import LARGEST_BATCH, LARGEST_POOL, TextDifficulty
from isoflop.training.pretrain.recipe import (
    WHERE_IT_RUNS,
    BalanceSection,
    InitialSection,
    MtpSection,
    PretrainRecipe,
    check,
)
from isoflop.training.pretrain.terms import StepTerms
from isoflop.training.pretrain.validate import validate
from isoflop.training.run import Built, Job, run
from isoflop.training.saturation import watch_clipping
from isoflop.training.schedule import cooldown_start
from isoflop.training.step_hooks import NoiseHook, PlainFrom, StepHook
from isoflop.training.workload import Loss, Workload

VALIDATED_AT_ONCE = 65_536
"""Tokens of a forward pass of validation on a GPU (measured: 0.9 s a small model by 8,192, docs/log.md)."""


class LanguageModel(Workload):
    """Next-token loss on windows of a tokens folder, with the terms that the model's parts need."""

    def __init__(
        self,
        recipe: PretrainRecipe,
        token_set: TokenSet,
        terms: StepTerms | None = None,
        further_hooks: Sequence[StepHook] = (),
    ):
        """`terms` join the loss and are the first of the hooks."""
        config, t = recipe.model, recipe.train
        self._terms = terms
        self.hooks = [*([] if terms is None else [terms]), *further_hooks]
        self.tokens_per_step = t.batch_tokens
        self._micro_batch = t.micro_batch or t.batch_tokens // config.seq_len
        self._token_set = token_set
        self._batches = _batches(recipe, token_set)
        self._max_validation_tokens = recipe.validate.max_tokens
        self._windows: dict[str, list[tuple[Tensor, Tensor, int]]] | None = None
        self.unique_tokens = self._batches.n_unique_tokens
        self.epochs = self._batches.epochs(t.n_tokens)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[tuple[Tensor, ...]]:
        windows_BT = torch.from_numpy(self._batches.batch(step, rank=rank, world_size=world))
        return [(part,) for part in windows_BT.split(self._micro_batch)]

    def batches(self, first: int, end: int) -> list[list[tuple[Tensor, ...]]]:
        n = self._batches.batch_sequences
        windows_RT = torch.from_numpy(self._batches.sequences(np.arange(first * n, end * n, dtype=np.int64)))
        return [[(part,) for part in windows_BT.split(self._micro_batch)] for windows_BT in windows_RT.split(n)]

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
            # On a GPU short windows come in groups that take longer to compute than to launch.
            cuda, seq_len = model.embedding.weight.is_cuda, model.config.seq_len
            n, most = max(64, VALIDATED_AT_ONCE // seq_len if cuda else 0), self._max_validation_tokens
            self._windows = {
                domain: [
                    (torch.from_numpy(w.tokens), torch.from_numpy(w.counted), w.n_bytes)
                    for w in self._batches.valid_windows(domain, max_tokens=most, batch_sequences=n)
                ]
                for domain in self._token_set.domains("valid")
            }
        return validate(model, self._windows)


class Pretraining(Job):
    """A pretrain recipe as a run: from random or given weights, from its own checkpoint, or from that of a trunk."""

    def __init__(self, recipe: PretrainRecipe):
        """Raises RecipeError and DataError: bad values, tokens missing or made with another tokenizer."""
        check(recipe)
        t, n_steps = recipe.train, recipe.n_steps()
        self.recipe, self._token_set = _with_whole_paths(recipe), _open_tokens(recipe)
        self.trajectory = trajectory_of(recipe, self._token_set)
        self.identity = {
            "trajectory": self.trajectory,
            "n_steps": n_steps,
            "schedule": t.schedule,
            "cooldown_fraction": t.cooldown_fraction,
        }
        self.plan = StepPlan(
            n_steps,
            rate=recipe.rate,
            clip_norm=t.clip_norm,
            validate_every=recipe.validate.every_steps,
            graph=t.cuda_graph,
            plain_from=recipe.plain_from(),
        )
        self.saving = Saving(recipe.checkpoint.every_steps, recipe.checkpoint.every_s, recipe.checkpoint.keep)

    def is_result(self, result: dict[str, Any]) -> bool:
        return all(result.get(key) == self.identity[key] for key in ("trajectory", "n_steps"))

    def build(self) -> Built:
        recipe, t = self.recipe, self.recipe.train
        if t.threads:
            torch.set_num_threads(t.threads)
        device = choose_device(t.device)
        dtype = choose_dtype(t.precision, device)
        document_start = None if recipe.data.cross_document else self._token_set.tokenizer.bos_id
        model = Transformer(recipe.model, dtype, document_start).to(device)
        hooks: list[StepHook] = []
        if recipe.numerics is not None:
            noise_key = NoiseKey(t.seed, recipe.numerics.seed)
            assign(model, recipe.numerics, noise_key)
            hooks = [*watch_clipping(model), NoiseHook(noise_key)]
            if (first := recipe.plain_from()) is not None:
                hooks.append(PlainFrom(model, first))
        terms = None
        if recipe.model.experts is not None or recipe.model.mtp_depth > 0:
            balance, mtp = t.balance or BalanceSection(), t.mtp or MtpSection()
            terms = StepTerms(model, balance, mtp, batch_tokens=t.batch_tokens)
        settings = {"learning_rate": t.learning_rate, "eps": t.eps, "weight_decay": t.weight_decay}
        optimizer = optimizer_of(model, t.optimizer, betas=(t.beta1, t.beta2), **settings)
        exact = flops_per_token(recipe.model, "exact")
        if _should_compile(recipe, model, exact * t.n_tokens):
            for block in model.all_blocks():
                block.compile(dynamic=False)
        workload = LanguageModel(recipe, self._token_set, terms, hooks)
        return Built(workload, model, optimizer, exact, dtype, forecast=forecast_of(recipe, self._token_set))

    def initialise(self, model: nn.Module) -> None:
        assert isinstance(model, Transformer)
        if self.recipe.initial is not None:
            take_weights(self.recipe.initial, model)
        else:
            model.initialise(torch.Generator().manual_seed(self.recipe.train.seed))

    def keep(self, run_dir: Path) -> None:
        keep_tokenizer(self._token_set.folder, run_dir)

    def check_continues(self, state: dict[str, Any], found: Path) -> None:
        if state["trajectory"] != self.trajectory:
            raise CheckpointError(
                f"{found} was trained with another recipe or other data than this one; "
                f"use the recipe.toml beside it, or another run folder"
            )
        t, n_steps, step = self.recipe.train, self.plan.n_steps, state["step"]
        trained = (state["n_steps"], state.get("cooldown_fraction", t.cooldown_fraction))
        asked = (n_steps, t.cooldown_fraction)
        if trained != asked:
            # Beyond it one of the two has cooled down, or gone back to plain products.
            limit, ends = min(cooldown_start(*trained), cooldown_start(*asked)), "cooldown"
            if self.recipe.numerics is not None and state["n_steps"] != n_steps:
                for first in map(self.recipe.numerics.plain_from, (state["n_steps"], n_steps)):
                    limit, ends = (limit, ends) if first is None or first >= limit else (first, "numerics.until")
            if t.schedule != "constant_cooldown" or step > limit:
                raise CheckpointError(
                    f"{found} is at step {step} of a run of {state['n_steps']} steps, this recipe has {n_steps}; "
                    f"only constant_cooldown runs share a trunk, up to the {ends} of the shorter one (step {limit}); "
                    f"give another run folder"
                )

    def result(self, figures: dict[str, Any], validation: dict[str, object], built: Built) -> dict[str, Any]:
        recipe, workload, tokens = self.recipe, built.workload, self._token_set
        assert isinstance(workload, LanguageModel)
        precision, n_tokens = str(built.dtype).removeprefix("torch."), figures["n_tokens"]
        scale, exact = flops_per_token(recipe.model, "M"), flops_per_token(recipe.model, "exact")
        return {
            **figures,
            "flops_per_token": scale,
            "flops_per_token_exact": exact,
            "total_flops": scale * n_tokens,
            "total_flops_exact": exact * n_tokens,
            "unique_tokens": workload.unique_tokens,
            "epochs": workload.epochs,
            "precision": precision,
            "numerics": numerics_text(recipe.numerics, precision),
            "tokenizer_sha256": tokens.tokenizer_sha256,
            "data_sha256": tokens.data_sha256,
            "held_out_sha256": tokens.held_out_sha256,
            "trajectory": self.trajectory,
            **validation,
        }


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

    `start_from`, `stop_at` and `keep_steps` are those of isoflop.training.run.run.

    Raises:
        RecipeError: bad values, or a run folder that holds another recipe.
        DataError: tokens missing or made with another tokenizer.
        CheckpointError: all checkpoints damaged, or the disk is full.
    """
    return run(
        Pretraining(recipe),
        run_dir,
        start_from=start_from,
        stop_at=stop_at,
        keep_steps=keep_steps,
        on_progress=on_progress,
        should_stop=should_stop,
    )


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
    for key in WHERE_IT_RUNS:
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


def _batches(recipe: PretrainRecipe, token_set: TokenSet) -> Batches:
    return Batches(
        token_set,
        seq_len=recipe.model.seq_len,
        batch_sequences=recipe.train.batch_tokens // recipe.model.seq_len,
        seed=recipe.train.seed,
        weights=recipe.data.weights or None,
        curriculum=_stages(recipe),
    )


def _stages(recipe: PretrainRecipe) -> list[tuple[int, dict[str, float]]]:
    """(first sequence, weights) of each stage of the curriculum."""
    n_sequences = recipe.n_steps() * recipe.train.batch_tokens // recipe.model.seq_len
    return [(round(stage.from_share * n_sequences), stage.weights) for stage in recipe.data.curriculum]


def take_weights(initial: InitialSection, model: nn.Module) -> None:
    """Load the weights of another run's checkpoint. Raises CheckpointError where they are not those meant."""
    folder = Path(initial.checkpoint)
    if problem := checkpoint.damage(folder):
        raise CheckpointError(f"initial.checkpoint: {problem}; train that run again, or give another checkpoint")
    state = checkpoint.load(folder, model, None)
    if (found := state["sha256"]["model.safetensors"]) != initial.model_sha256:
        raise CheckpointError(
            f"initial.checkpoint = {initial.checkpoint} has weights {found[:12]}, initial.model_sha256 asks for "
            f"{initial.model_sha256[:12]}; give the checkpoint that the recipe was made for"
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
    if recipe.initial is not None:
        origin = Path(recipe.initial.checkpoint).parents[1]
        way_out = "give data.tokens a folder made with that tokenizer (reuse_tokenizer in a tokens recipe)"
        require_tokenizer_of(origin, token_set.tokenizer_sha256, recipe.data.tokens, way_out)
    if recipe.model.vocab_size != token_set.vocab_size:
        raise DataError(
            f"model.vocab_size = {recipe.model.vocab_size} but the tokenizer of {recipe.data.tokens} has "
            f"{token_set.vocab_size} rows (padding included); set model.vocab_size = {token_set.vocab_size}"
        )
    return token_set


def _with_whole_paths(recipe: PretrainRecipe) -> PretrainRecipe:
    """The recipe as it is written down: from any folder, its paths lead to the same places."""
    data = dataclasses.replace(recipe.data, tokens=str(Path(recipe.data.tokens).resolve()))
    initial = recipe.initial
    if initial is not None:
        initial = dataclasses.replace(initial, checkpoint=str(Path(initial.checkpoint).resolve()))
    return dataclasses.replace(recipe, data=data, initial=initial)


def forecast_of(recipe: PretrainRecipe, token_set: TokenSet) -> LossForecast | None:
    """An onlooker for a run long enough; the plan's curve, where it is for this run, says more about it."""
    n_steps, curve = recipe.n_steps(), (recipe.prediction or {}).get("curve") or {}
    if n_steps < 2 * BLOCKS:
        return None
    if curve and curve["steps"][-1] != n_steps:  # planned for more or fewer steps
        curve = {}
    nats, batches = curve.get("final_nats"), _batches(recipe, token_set)
    judged = recipe.train.batch_tokens <= LARGEST_BATCH and batches.n_unique_tokens <= LARGEST_POOL
    return LossForecast(
        [recipe.rate(step) for step in range(n_steps)],
        gain=curve.get("gain_nats") or recipe.usual_gain(),
        stages=[stage * recipe.model.seq_len // recipe.train.batch_tokens for stage, _ in _stages(recipe)[1:]],
        planned=Interval(*nats) if nats else None,
        difficulty=TextDifficulty(batches, vocab_size=recipe.model.vocab_size, n_steps=n_steps) if judged else None,
    )


def _should_compile(recipe: PretrainRecipe, model: Transformer, total_flops: float) -> bool:
    if recipe.train.compile == "auto":
        return compiles(model) and total_flops > 2e15  # below, compiling takes longer than it saves
    return recipe.train.compile == "on"


def compiles(model: Transformer) -> bool:
    """Whether compiled blocks of a long run are faster: on a GPU, where our own kernels do not join the steps already.

    Measured for a mixture and a small cell (docs/speed.md): then compiling costs time only.
    """
    weight = model.embedding.weight
    return weight.is_cuda and not has_kernels(torch.empty(0, dtype=model.dtype, device=weight.device))
