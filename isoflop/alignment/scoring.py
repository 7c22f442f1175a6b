"""What a model makes of samples: log-probabilities of their targets, the loss on held-out ones, and intervals.

Shapes: B rows, T tokens, R positions with a target, D d_model.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isoflop.alignment.losses import sum_by_sample
from isoflop.alignment.packing import Packed, pack
from isoflop.intervals import Interval, wilson
from isoflop.model.log_probs import head_log_probs
from isoflop.model.transformer import Transformer
from isoflop.tokens.chat import Row

N_RESAMPLES = 2000
"""Of a bootstrap (assumption: the second digit of an interval is then stable)."""


class Scored(NamedTuple):
    """Sums over the targets of each sample."""

    log_probs: Tensor
    entropies: Tensor
    n_targets: Tensor


def score(model: Transformer, packed: Packed, n_samples: int) -> Scored:
    """Log-probability and entropy of every sample of some rows, float32, with gradient where it is on."""
    hidden_BTD = model(packed.tokens_BT, documents_BT=packed.samples_BT)
    counted_BT = packed.targets_BT >= 0
    hidden_RD, targets_R = hidden_BTD[counted_BT], packed.targets_BT[counted_BT]  # prompts need no logits
    samples_R = packed.samples_BT[counted_BT]
    log_probs_R, entropy_R = head_log_probs(model.head, hidden_RD, targets_R)
    return Scored(
        sum_by_sample(log_probs_R, samples_R, n_samples),
        sum_by_sample(entropy_R.detach(), samples_R, n_samples),
        sum_by_sample(torch.ones_like(log_probs_R), samples_R, n_samples),
    )


@torch.no_grad()
def score_rows(model: Transformer, rows: Sequence[Row], *, micro_tokens: int) -> Scored:
    """`score` of any number of rows, in groups that a forward pass can hold; on the CPU."""
    was_training = model.training
    model.eval()
    device, width = model.embedding.weight.device, model.config.seq_len
    found = []
    for group in in_groups([len(row.ids) for row in rows], micro_tokens, width):
        packed = pack([rows[index] for index in group], seq_len=width)
        on_device = Packed(*(part.to(device) for part in packed))
        found.append(Scored(*(part.cpu() for part in score(model, on_device, len(group)))))
    model.train(was_training)
    return Scored(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def in_groups(lengths: Sequence[int], micro_tokens: int, width: int) -> Iterator[list[int]]:
    """Consecutive samples whose tokens fill about `micro_tokens`, at least one row of `width`, in each group."""
    limit = max(micro_tokens // width, 1) * width
    group: list[int] = []
    held = 0
    for index, length in enumerate(lengths):
        if group and held + length > limit:
            yield group
            group, held = [], 0
        group.append(index)
        held += length
    if group:
        yield group


def share(wins: Sequence[bool] | np.ndarray) -> Interval:
    """A share with Wilson's interval."""
    return wilson(int(np.sum(wins)), len(wins)) if len(wins) else Interval(float("nan"), 0.0, 1.0, 0)


def ratio(sums: np.ndarray, counts: np.ndarray, seed: int = 0) -> Interval:
    """sum / count over samples, with a bootstrap over samples: the tokens of one sample are not independent."""
    drawn = _resamples(len(sums), seed)
    values = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), len(sums))


def difference(before: np.ndarray, after: np.ndarray, seed: int = 0) -> Interval:
    """Mean of after - before over the same items, with a paired bootstrap."""
    change = np.asarray(after, float) - np.asarray(before, float)
    low, high = np.quantile(change[_resamples(len(change), seed)].mean(1), (0.025, 0.975))
    return Interval(float(change.mean()), float(low), float(high), len(change))


def _resamples(n: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).integers(0, n, (N_RESAMPLES, n))
