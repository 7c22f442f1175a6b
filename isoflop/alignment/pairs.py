"""Preference pairs as batches, and what every training on them counts: shared by DPO and reward models.

Which pairs a step holds follows from seed and epoch, and how they are grouped changes rounding and nothing else.

Shapes: B rows, T tokens, P pairs.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from isoflop.alignment.build import micro_tokens
from isoflop.alignment.packing import n_positions, order_of, pack, with_last_read
from isoflop.alignment.recipe import Recipe
from isoflop.alignment.samples import PairRows
from isoflop.alignment.scoring import in_groups, share
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


class Pairs:
    """Pairs of a training set as groups that a forward pass holds."""

    def __init__(self, pairs: Sequence[PairRows], *, seq_len: int, batch: int, seed: int, micro_tokens: int):
        self.pairs, self._seq_len, self._batch = pairs, seq_len, batch
        self._seed, self._micro_tokens = seed, micro_tokens
        self.steps_per_epoch = -(-len(pairs) // batch)
        mean = sum(n_positions(row) for pair in pairs for row in pair) / len(pairs)
        self.tokens_per_step = max(1, round(mean * min(batch, len(pairs))))

    @classmethod
    def of_job(cls, recipe: Recipe, pairs: Sequence[PairRows]) -> "Pairs":
        """As a resolved recipe says."""
        assert recipe.model is not None
        t = recipe.train
        options = {"seq_len": recipe.model.seq_len, "batch": t.batch, "seed": t.seed}
        return cls(pairs, micro_tokens=micro_tokens(recipe), **options)

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


class PairWorkload(Workload):
    """Pairs as batches, their figures, and the share that is ranked right on held-out ones."""

    def __init__(
        self,
        train: Pairs,
        valid: Pairs,
        figures: Sequence[str],
        device: torch.device,
        *,
        last_read: bool = False,
        hooks: Sequence[StepHook] = (),
    ):
        """`figures` are names for the metrics; `last_read` as `with_last_read` has it."""
        self._train, self._valid, self._last_read = train, valid, last_read
        self._figures = PairFigures(figures, device)
        self.hooks = [self._figures, *hooks]
        self.tokens_per_step = train.tokens_per_step

    def judged(self, model: nn.Module, group: Group) -> tuple[Tensor, Tensor]:
        """Loss of each held-out pair, and by how much its preferred answer is ahead: [P] each."""
        raise NotImplementedError

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[Group]:
        return self._train.groups(step, rank, world, last_read=self._last_read)

    def divisor(self, micro_batches: list[Group]) -> Tensor:
        return micro_batches[0][4]

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, object]:
        model.eval()
        device = next(model.parameters()).device
        groups = self._valid.group(range(len(self._valid.pairs)), last_read=self._last_read)
        found = [self.judged(model, tuple(part.to(device) for part in group)) for group in groups]
        model.train()
        losses_P, margins_P = (torch.cat(part).cpu() for part in zip(*found, strict=True))
        won = share((margins_P > 0).numpy())
        return {
            "loss_nats": float(losses_P.double().mean()),
            "accuracy": won.value,
            "low": won.low,
            "high": won.high,
            "n": won.n,
            "margin": float(margins_P.double().mean()),
            "longer_wins": longer_wins(self._valid.pairs),
        }


def longer_wins(pairs: Sequence[PairRows]) -> float:
    """Share of pairs whose preferred answer has more tokens; ties count half. The known shortcut of such models."""
    lengths = [(int(pair.chosen.is_target.sum()), int(pair.rejected.is_target.sum())) for pair in pairs]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in lengths) / len(lengths)
