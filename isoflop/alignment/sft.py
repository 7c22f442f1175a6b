"""Supervised fine-tuning: conversations in, a model that answers and stops out. A workload of the one training loop.

The loss of a step is minus the sum of the log-probabilities of all its targets over their number, targets being what
assistants said and the token that ends it. Which conversations a step holds follows from seed and epoch alone; how they
are packed into rows and split into micro-batches and ranks changes rounding and nothing else.

Source: DeepSeek LLM (arXiv 2401.02954, section 4: epochs, rates, two stages), DeepSeek-V3 (arXiv 2412.19437, section
5.1: packing with samples that do not see each other).
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.alignment.build import micro_tokens
from isoflop.alignment.job import AlignJob
from isoflop.alignment.packing import IGNORED, n_positions, order_of, pack
from isoflop.alignment.recipe import SftRecipe
from isoflop.alignment.sample_terms import SampleTerms
from isoflop.alignment.samples import load_conversations
from isoflop.alignment.scoring import ratio, score_rows
from isoflop.errors import CheckpointError, RecipeError
from isoflop.model.transformer import Transformer
from isoflop.tokens.chat import Row
from isoflop.training.monitor import Progress
from isoflop.training.pretrain.recipe import BalanceSection, MtpSection
from isoflop.training.run import run
from isoflop.training.step_hooks import StepHook
from isoflop.training.workload import Loss, Workload


class Sft(Workload):
    """Conversations as batches, their loss, and the loss on held-out ones."""

    def __init__(
        self,
        rows: Sequence[Row],
        valid: Sequence[Row],
        *,
        seq_len: int,
        batch: int,
        seed: int,
        micro_tokens: int,
        packed: bool = True,
        terms: SampleTerms | None = None,
        hooks: Sequence[StepHook] = (),
    ):
        self._rows, self._valid, self._seq_len = rows, valid, seq_len
        self._batch, self._seed, self._micro_tokens, self._packed = batch, seed, micro_tokens, packed
        self._terms = terms
        self.hooks = [*([terms] if terms else []), *hooks]
        mean = sum(n_positions(row) for row in rows) / len(rows)
        self.tokens_per_step = max(1, round(mean * min(batch, len(rows))))
        """On average: steps hold whole conversations."""

    def samples(self, step: int) -> list[Row]:
        """Conversations of a step: consecutive ones of the epoch's permutation."""
        per_epoch = -(-len(self._rows) // self._batch)
        epoch, place = divmod(step, per_epoch)
        order = order_of(len(self._rows), seed=self._seed, epoch=epoch)
        return [self._rows[index] for index in order[place * self._batch : (place + 1) * self._batch]]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[tuple[Tensor, ...]]:
        samples = self.samples(step)
        packed = pack(samples, seq_len=self._seq_len, packed=self._packed)
        n_targets = (packed.targets_BT >= 0).sum()  # of all ranks
        n_samples = torch.tensor(len(samples))
        rows, width = packed.tokens_BT.shape
        own = [
            _padded(part, -(-rows // world) * world, 0 if index == 0 else IGNORED) for index, part in enumerate(packed)
        ]
        mine = [part[rank::world] for part in own]
        size = max(1, self._micro_tokens // width)
        return [(*parts, n_targets, n_samples) for parts in zip(*(part.split(size) for part in mine), strict=True)]

    def divisor(self, micro_batches: list[tuple[Tensor, ...]]) -> Tensor:
        return micro_batches[0][3]

    def loss_sum(self, model: nn.Module, micro_batch: tuple[Tensor, ...]) -> Tensor | Loss:
        tokens_BT, targets_BT, samples_BT, n_targets, n_samples = micro_batch
        assert isinstance(model, Transformer)
        terms = self._terms
        losses = model.losses(tokens_BT, targets_BT, documents_BT=samples_BT, with_mtp=terms is not None)
        if terms is None:
            return losses.nats
        return Loss(terms.objective(losses, samples_BT, n_targets, n_samples), losses.nats)

    def validate(self, model: nn.Module) -> dict[str, object]:
        assert isinstance(model, Transformer)
        scored = score_rows(model, self._valid, micro_tokens=self._micro_tokens)
        figure = ratio(-scored.log_probs.double().numpy(), scored.n_targets.numpy())
        entropy = float(scored.entropies.sum() / scored.n_targets.sum())
        return {"loss_nats": figure.value, "low": figure.low, "high": figure.high, "n": figure.n, "entropy": entropy}


class SftJob(AlignJob):
    """An SFT recipe as a run."""

    title = "SFT"

    def __init__(self, recipe: SftRecipe, run_dir: Path):
        super().__init__(recipe, run_dir, load_conversations, train_blank=recipe.data.train_blank)
        self.recipe = dataclasses.replace(self.recipe, second=None)

    def workload(self, model: Transformer, dtype: torch.dtype, hooks: list[StepHook]) -> tuple[nn.Module, Workload]:
        config, t = model.config, self.recipe.train
        terms = None
        if config.experts is not None or config.mtp_depth:
            balance, mtp = t.balance or BalanceSection(), t.mtp or MtpSection()
            terms = SampleTerms(model, balance, mtp, moves_bias=self.recipe.adapter is None)
        workload = Sft(
            self.samples.train,
            self.valid,
            seq_len=config.seq_len,
            batch=t.batch,
            seed=t.seed,
            micro_tokens=micro_tokens(self.recipe),
            packed=t.packed,
            terms=terms,
            hooks=hooks,
        )
        return model, workload

    def before(self, model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, Transformer)
        scored = score_rows(model, self.valid, micro_tokens=micro_tokens(self.recipe))
        figure = ratio(-scored.log_probs.double().numpy(), scored.n_targets.numpy())
        return {"assistant_loss": figure._asdict(), **super().before(model)}


def run_sft(
    recipe: SftRecipe,
    run_dir: Path,
    *,
    stage: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Fine-tune as the recipe says; resumes what it finds. With a second stage: RUN/stage1, then RUN/stage2.

    `stage` 1 or 2 runs that one alone; 0 runs all there are, and returns the last one's result.

    Raises:
        RecipeError: bad values, or a stage that the recipe does not have.
        DataError: data or a tokenizer that cannot be used.
        CheckpointError: a base that cannot be started from, all checkpoints damaged, or the disk is full.
    """
    options: dict[str, Any] = {"on_progress": on_progress, "should_stop": should_stop}
    if recipe.second is None:
        if stage == 2:
            raise RecipeError(
                "--stage 2 needs a [second] section in the recipe, or a recipe that starts from the first"
            )
        return run(SftJob(recipe, run_dir), run_dir, **options)
    first = run_dir / "stage1"
    result: dict[str, Any] = {}
    if stage in (0, 1):
        result = run(SftJob(dataclasses.replace(recipe, second=None), first), first, **options)
    if stage == 1 or (result and result["status"] != "finished"):
        return result
    if not (first / "result.json").is_file():
        raise CheckpointError(f"--stage 2: {first} has not finished; run --stage 1 first")
    second = run_dir / "stage2"
    return run(SftJob(second_recipe(recipe, first), second), second, **options)


def second_recipe(recipe: SftRecipe, first: Path) -> SftRecipe:
    """The second stage as a recipe of its own."""
    section = recipe.second
    assert section is not None
    train = dataclasses.replace(
        recipe.train,
        learning_rate=section.learning_rate or recipe.train.learning_rate,
        epochs=section.epochs or recipe.train.epochs,
    )
    initial = dataclasses.replace(recipe.initial, run=str(first), tokenizer="", checkpoint="", model_sha256="")
    data = dataclasses.replace(recipe.data, train=section.train)
    return dataclasses.replace(recipe, initial=initial, data=data, train=train, second=None)


def _padded(part_BT: Tensor, n_rows: int, value: int) -> Tensor:
    """With rows of padding at the end, so that all ranks have as many."""
    more = n_rows - len(part_BT)
    return nn.functional.pad(part_BT, (0, 0, 0, more), value=value) if more else part_BT
