"""Direct preference optimisation: pairs of answers in, a model that prefers the better one out.

A workload of the one training loop. Both sides of a pair are in one forward pass; which pairs a step holds follows from
seed and epoch, and how they are grouped changes rounding and nothing else. The reference is the model of step 0: with
adapters the base they lie beside, without them its cached log-probabilities or a frozen copy.

Source: arXiv 2305.18290; DeepSeek LLM (arXiv 2401.02954, section 4: one epoch, 5e-6, batch 512).

Shapes: B rows, T tokens, P pairs.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.alignment.adapters import without_adapters
from isoflop.alignment.job import AlignJob
from isoflop.alignment.losses import PairTerms, Sides, pair_losses
from isoflop.alignment.packing import Packed
from isoflop.alignment.pairs import Group, Pairs, PairWorkload
from isoflop.alignment.recipe import DpoRecipe, DpoSection
from isoflop.alignment.reference import FILE, NAMES, key_of, read_reference, write_reference
from isoflop.alignment.samples import digest
from isoflop.alignment.scoring import Scored, score
from isoflop.model.transformer import Transformer
from isoflop.recipe import to_tree
from isoflop.training.monitor import Progress
from isoflop.training.run import run
from isoflop.training.step_hooks import StepHook
from isoflop.training.workload import Workload

FIGURES = (
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected", "entropy"),
)


class Dpo(PairWorkload):
    """Pairs as batches, their loss against a reference, and the share that is won on held-out ones."""

    def __init__(
        self,
        train: Pairs,
        valid: Pairs,
        section: DpoSection,
        device: torch.device,
        *,
        cached: dict[str, Tensor] | None = None,
        live: nn.Module | None = None,
        hooks: Sequence[StepHook] = (),
    ):
        """The reference is `cached`, or the model `live`, or, with neither, the model without its adapters."""
        super().__init__(train, valid, FIGURES, device, hooks=hooks)
        self._section, self._live = section, live
        self._cached = None if cached is None else {name: tensor.to(device) for name, tensor in cached.items()}

    def loss_sum(self, model: nn.Module, micro_batch: Group) -> Tensor:
        terms, scored = self._terms(model, micro_batch, "train")
        n = len(terms.loss_P)
        sums, tokens = Sides(*scored.log_probs.view(-1, 2).unbind(1)), scored.n_targets.sum()
        self._figures.add(
            [
                terms.rewards.chosen_P.sum(),
                terms.rewards.rejected_P.sum(),
                terms.margins_P.sum(),
                terms.wins_P.sum(),
                sums.chosen_P.sum(),
                sums.rejected_P.sum(),
                scored.entropies.sum(),
            ],
            [n, n, n, n, n, n, tokens],
        )
        return terms.loss_P.sum()

    def judged(self, model: nn.Module, group: Group) -> tuple[Tensor, Tensor]:
        terms, _ = self._terms(model, group, "valid")
        return terms.loss_P, terms.margins_P

    def _terms(self, model: nn.Module, group: tuple[Tensor, ...], which: str) -> tuple[PairTerms, Scored]:
        assert isinstance(model, Transformer)
        packed, pairs_P = Packed(*group[:3]), group[3]
        scored = score(model, packed, 2 * len(pairs_P))
        lengths = Sides(*scored.n_targets.view(-1, 2).unbind(1))
        if self._cached is not None:
            reference = Sides(self._cached[f"{which}.chosen"][pairs_P], self._cached[f"{which}.rejected"][pairs_P])
        else:
            reference = self._reference(model, packed, len(pairs_P))
        section = self._section
        log_probs = Sides(*scored.log_probs.view(-1, 2).unbind(1))
        terms = pair_losses(
            log_probs, reference, lengths, beta=section.beta, loss=section.loss, label_smoothing=section.label_smoothing
        )
        return terms, scored

    @torch.no_grad()
    def _reference(self, model: Transformer, packed: Packed, n_pairs: int) -> Sides:
        if self._live is not None:
            assert isinstance(self._live, Transformer)
            found = score(self._live, packed, 2 * n_pairs).log_probs
        else:
            with without_adapters(model):
                found = score(model, packed, 2 * n_pairs).log_probs
        return Sides(*found.view(-1, 2).unbind(1))


@torch.no_grad()
def reference_log_probs(model: Transformer, train: Pairs, valid: Pairs) -> dict[str, Tensor]:
    """Of both sides of all pairs, in the groups of the first epoch."""
    model.eval()
    device = model.embedding.weight.device
    found = {
        name: torch.zeros(len((train if name.startswith("train") else valid).pairs), device=device) for name in NAMES
    }
    groups = [("train", group) for step in range(train.steps_per_epoch) for group in train.groups(step)]
    groups += [("valid", group) for group in valid.group(range(len(valid.pairs)))]
    for which, group in groups:
        on_device = [part.to(device) for part in group]
        sums = score(model, Packed(*on_device[:3]), 2 * len(group[3])).log_probs.view(-1, 2)
        found[f"{which}.chosen"][on_device[3]] = sums[:, 0]
        found[f"{which}.rejected"][on_device[3]] = sums[:, 1]
    model.train()
    return {name: tensor.cpu() for name, tensor in found.items()}


class DpoJob(AlignJob):
    """A DPO recipe as a run."""

    title = "DPO"

    def __init__(self, recipe: DpoRecipe, run_dir: Path):
        super().__init__(recipe, run_dir)
        self.train_pairs, self.valid_pairs = (
            Pairs.of_job(self.recipe, pairs) for pairs in (self.samples.train, self.valid)
        )

    def workload(self, model: Transformer, dtype: torch.dtype, hooks: list[StepHook]) -> tuple[nn.Module, Workload]:
        recipe, cached, live = self.recipe, None, None
        if recipe.dpo.reference == "cached":
            cached = self._cached(model, dtype)
        elif recipe.adapter is None:
            live = copy.deepcopy(model).requires_grad_(False)
        device = model.embedding.weight.device
        pairs = self.train_pairs, self.valid_pairs
        return model, Dpo(*pairs, recipe.dpo, device, cached=cached, live=live, hooks=hooks)

    def _cached(self, model: Transformer, dtype: torch.dtype) -> dict[str, Tensor]:
        key = key_of(
            weights=self.start.model_sha256,
            template=self.start.template.sha256,
            tokenizer=self.start.tokenizer_sha256,
            train=digest(self.train_pairs.pairs),
            valid=digest(self.valid_pairs.pairs),
            numerics=to_tree(self.recipe.numerics) if self.recipe.numerics else None,
            precision=str(dtype),
        )
        path = self.run_dir / FILE
        found = read_reference(path, key)
        if found is None:
            with without_adapters(model):
                found = reference_log_probs(model, self.train_pairs, self.valid_pairs)
            write_reference(path, found, key)
        return found


def run_dpo(
    recipe: DpoRecipe,
    run_dir: Path,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train on preferences as the recipe says; resumes what it finds.

    Raises:
        RecipeError: bad values.
        DataError: data or a tokenizer that cannot be used.
        CheckpointError: a base that cannot be started from, a stale reference, damaged checkpoints, a full disk.
    """
    return run(DpoJob(recipe, run_dir), run_dir, on_progress=on_progress, should_stop=should_stop)
