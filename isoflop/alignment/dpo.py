"""Direct preference optimisation: pairs of answers in, a model that prefers the better one out.

A workload of the one training loop. Both sides of a pair are in one forward pass; which pairs a step holds follows from
seed and epoch, and how they are grouped changes rounding and nothing else. The reference is the model of step 0: with
adapters the base they lie beside, without them its cached log-probabilities or a frozen copy.

Source: arXiv 2305.18290; DeepSeek LLM (arXiv 2401.02954, section 4: one epoch, 5e-6, batch 512).

Shapes: B rows, T tokens, P pairs.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.alignment.adapters import without_adapters
from isoflop.alignment.asked import ask
from isoflop.alignment.build import (
    BEFORE,
    begin_folder,
    micro_tokens,
    optimizer_of,
    plan_of,
    prepare,
    saving_of,
    write_merged,
)
from isoflop.alignment.losses import PairTerms, Sides, pair_losses
from isoflop.alignment.packing import Packed, n_positions, order_of, pack, with_last_read
from isoflop.alignment.page import write_page
from isoflop.alignment.recipe import DpoRecipe, DpoSection, check
from isoflop.alignment.reference import FILE, NAMES, key_of, read_reference, write_reference
from isoflop.alignment.samples import PairRows, digest, load_pairs
from isoflop.alignment.scoring import Scored, in_groups, score, share
from isoflop.alignment.sft import check_same, limit_of, require_stop, shares_of, trajectory_of
from isoflop.alignment.start import open_start, resolved_start
from isoflop.model.accounting import flops_per_token
from isoflop.model.transformer import Transformer
from isoflop.recipe import to_tree, write_json
from isoflop.training.monitor import Progress
from isoflop.training.run import Built, Job, run
from isoflop.training.step_hooks import StepHook
from isoflop.training.workload import Workload

Group = tuple[Tensor, ...]
"""tokens, targets, samples [B, T]; pair index of each pair of the group [P]; pairs of the step."""


class PairFigures(StepHook):
    """Means over the pairs of a step, by the names that preference training usually has."""

    def __init__(self, names: Sequence[str], device: torch.device):
        self._names, self.n_figures = names, len(names)
        self._sums = torch.zeros(len(names), device=device)
        self._counts = torch.zeros(len(names), device=device)

    def add(self, sums: Sequence[Tensor], counts: Sequence[Tensor | int]) -> None:
        """One sum and one count for each name, of a micro-batch."""
        self._sums += torch.stack([value.detach().float() for value in sums])
        device = self._counts.device
        self._counts += torch.stack([torch.as_tensor(count, device=device).float() for count in counts])

    def finish(self) -> Tensor:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._sums)
            torch.distributed.all_reduce(self._counts)
        figures = self._sums / self._counts.clamp(min=1)
        self.reset()
        return figures

    def reset(self) -> None:
        self._sums.zero_()
        self._counts.zero_()

    def figures(self, step: int, values: list[float]) -> dict[str, object]:
        return dict(zip(self._names, values, strict=True))


FIGURES = (
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected", "entropy"),
)


class Pairs:
    """Pairs of a training set as groups that a forward pass holds."""

    def __init__(self, pairs: Sequence[PairRows], *, seq_len: int, batch: int, seed: int, micro_tokens: int):
        self.pairs, self._seq_len, self._batch = pairs, seq_len, batch
        self._seed, self._micro_tokens = seed, micro_tokens
        self.steps_per_epoch = -(-len(pairs) // batch)
        mean = sum(n_positions(row) for pair in pairs for row in pair) / len(pairs)
        self.tokens_per_step = max(1, round(mean * min(batch, len(pairs))))

    def groups(self, step: int, rank: int = 0, world: int = 1, *, last_read: bool = False) -> list[Group]:
        """Of optimizer step `step`; with `last_read` as `with_last_read` has it."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = order_of(len(self.pairs), seed=self._seed, epoch=epoch)
        chosen = order[place * self._batch : (place + 1) * self._batch].tolist()
        n_pairs = torch.tensor(len(chosen))
        own = chosen[rank::world]
        groups = list(self.group(own, last_read=last_read))
        most = max(len(list(self._split(chosen[r::world]))) for r in range(world))
        filler = [(*self._empty(), n_pairs)] * (most - len(groups))  # all ranks take as many forward passes
        return [*((*group, n_pairs) for group in groups), *filler]

    def group(self, indices: Sequence[int], *, last_read: bool = False) -> Iterator[Group]:
        """Packed rows of these pairs, and their indices, group by group."""
        for part in self._split(indices):
            rows = [side for index in part for side in self.pairs[index]]
            packed = pack(with_last_read(rows) if last_read else rows, seq_len=self._seq_len)
            yield (*packed, torch.tensor(part))

    def _split(self, indices: Sequence[int]) -> Iterator[list[int]]:
        lengths = [sum(n_positions(side) for side in self.pairs[index]) for index in indices]
        for group in in_groups(lengths, self._micro_tokens, self._seq_len):
            yield [indices[place] for place in group]

    def _empty(self) -> Group:
        rows = torch.full((1, self._seq_len), -1)
        return torch.zeros_like(rows), rows, rows, torch.zeros(0, dtype=torch.long)


class Dpo(Workload):
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
        self._train, self._valid, self._section = train, valid, section
        self._cached = None if cached is None else {name: tensor.to(device) for name, tensor in cached.items()}
        self._live = live
        self._figures = PairFigures(FIGURES, device)
        self.hooks = [self._figures, *hooks]
        self.tokens_per_step = train.tokens_per_step

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[Group]:
        return self._train.groups(step, rank, world)

    def divisor(self, micro_batches: list[Group]) -> Tensor:
        return micro_batches[0][4]

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

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, object]:
        model.eval()
        device = next(model.parameters()).device
        found = [
            self._terms(model, tuple(part.to(device) for part in group), "valid")[0]
            for group in self._valid.group(range(len(self._valid.pairs)))
        ]
        model.train()
        losses, wins, margins = (
            torch.cat([getattr(terms, name) for terms in found]).cpu() for name in ("loss_P", "wins_P", "margins_P")
        )
        won = share(wins.bool().numpy())
        longer = longer_wins(self._valid.pairs)
        return {
            "loss_nats": float(losses.double().mean()),
            "accuracy": won.value,
            "low": won.low,
            "high": won.high,
            "n": won.n,
            "margin": float(margins.double().mean()),
            "longer_wins": longer,
        }

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
            log_probs,
            reference,
            lengths,
            beta=section.beta,
            loss=section.loss,
            label_smoothing=section.label_smoothing,
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


def longer_wins(pairs: Sequence[PairRows]) -> float:
    """Share of pairs whose preferred answer has more tokens; ties count half. The known shortcut of such models."""
    lengths = [(int(pair.chosen.is_target.sum()), int(pair.rejected.is_target.sum())) for pair in pairs]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in lengths) / len(lengths)


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


class DpoJob(Job):
    """A DPO recipe as a run."""

    def __init__(self, recipe: DpoRecipe, run_dir: Path):
        """Raises RecipeError, DataError and CheckpointError for what cannot be trained on or from."""
        check(recipe)
        self._run_dir = run_dir
        self.start = open_start(recipe.initial, recipe.data.template)
        require_stop(self.start)
        config, t = self.start.config, recipe.train
        self.samples = load_pairs(
            recipe.data,
            self.start.template,
            max_tokens=limit_of(recipe.data.max_tokens, config.seq_len),
            seed=t.seed,
        )
        self.recipe = dataclasses.replace(recipe, initial=resolved_start(recipe.initial, self.start), model=config)
        n_steps = t.n_steps(len(self.samples.train))
        trajectory = trajectory_of(self.recipe, self.start, digest(self.samples.train))
        self.identity = {"trajectory": trajectory, "n_steps": n_steps, "base_sha256": self.start.model_sha256}
        self.plan, self.saving = plan_of(recipe, n_steps), saving_of(recipe)
        options: dict[str, Any] = {
            "seq_len": config.seq_len,
            "batch": t.batch,
            "seed": t.seed,
            "micro_tokens": micro_tokens(recipe),
        }
        held = self.samples.valid[: recipe.validate.max_samples or None]
        self.train_pairs, self.valid_pairs = Pairs(self.samples.train, **options), Pairs(held, **options)

    def build(self) -> Built:
        recipe, start = self.recipe, self.start
        model, dtype, hooks = prepare(recipe, start)
        begin_folder(self._run_dir, recipe, start, self.samples)
        cached, live = None, None
        if recipe.dpo.reference == "cached":
            cached = self._cached(model, dtype)
        elif recipe.adapter is None:
            live = copy.deepcopy(model).requires_grad_(False)
        device = model.embedding.weight.device
        workload = Dpo(self.train_pairs, self.valid_pairs, recipe.dpo, device, cached=cached, live=live, hooks=hooks)
        return Built(workload, model, optimizer_of(recipe, model), flops_per_token(start.config, "exact"), dtype)

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
        path = self._run_dir / FILE
        found = read_reference(path, key)
        if found is None:
            with without_adapters(model):
                found = reference_log_probs(model, self.train_pairs, self.valid_pairs)
            write_reference(path, found, key)
        return found

    def initialise(self, model: nn.Module) -> None:
        assert isinstance(model, Transformer)
        said = ask(model, self.start, self.samples.prompts, self.recipe.answers)
        write_json(self._run_dir / BEFORE, {"answers": said})

    def check_continues(self, state: dict[str, Any], found: Path) -> None:
        check_same(self.identity, state, found)

    def result(self, figures: dict[str, Any], validation: dict[str, object], built: Built) -> dict[str, Any]:
        model = built.model
        assert isinstance(model, Transformer)
        result = {**self.identity, **figures, "samples": self.samples.summary, "template": self.start.template.name}
        if not validation:
            return result
        said = ask(model, self.start, self.samples.prompts, self.recipe.answers)
        result |= {"loss_nats": validation["loss_nats"], "accuracy": validation["accuracy"], "validation": validation}
        result |= shares_of(said)
        if self.recipe.adapter is not None and self.recipe.adapter.merge:
            write_merged(self._run_dir, self.recipe, self.start, model)
        write_json(self._run_dir / "answers.json", said)
        write_page(self._run_dir, "DPO", self.recipe, result, said)
        return result


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
