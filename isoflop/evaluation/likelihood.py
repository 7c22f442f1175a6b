"""Log-probabilities of the ends of many sequences: shared beginnings once, the head only where something is asked.

`score` takes sequences of token ids and gives, for each, the summed log-probability of its last tokens and whether
greedy decoding would have given them, as an evaluation asks of options, windows of a document or whole texts. What is
shared is found in the tokens themselves (`forest.py`), so nobody has to say which sequences belong together. A forward
pass has a budget of tokens, and its results are read from the device once, while the next one is computed.

Shapes: N tokens of a pass, M places where a token is asked for, A asked tokens, D d_model, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.evaluation.forest import SHARED_LEAST, Asked, Node, cut, grow, path_slots
from isoflop.model.many_rows import run_step
from isoflop.model.transformer import Transformer
from isoflop.model.tree import Run, TreePages, tree_step

HEAD_VALUES = 2**28
"""Logits that exist at once on a GPU: 1 GiB of float32 (assumption)."""
HEAD_COLUMNS = 256
"""Tokens of the vocabulary whose logits exist at once on a CPU (measured: docs/log.md 2026-11-30)."""
BUDGET_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Tokens of a forward pass (assumption: caches again; the widest activation of a 7B model is 1.4 GB of bf16)."""


class Score(NamedTuple):
    """Of one sequence."""

    number: int
    """Which of the given ones."""
    nats: float
    """Summed log-probability of the scored tokens."""
    is_greedy: bool
    """Whether each of them is the most likely one."""


class _Places(NamedTuple):
    """Where a pass is asked for tokens."""

    places_M: Tensor
    """Tokens of the pass."""
    row_A: np.ndarray
    """Which of them each asked token follows, ascending."""
    row_of_A: Tensor
    target_A: Tensor
    owners_A: np.ndarray
    """Which sequence asks."""


class _Read(NamedTuple):
    """What a pass is waiting to give back."""

    owners_A: np.ndarray
    found_2A: Tensor
    """Log-probability, and 1 where the token is the most likely one."""


@torch.inference_mode()
def score(model: Transformer, sequences: Sequence[Asked], *, budget: int = 0) -> Iterator[Score]:
    """Scores of all sequences, each as soon as it is known, in no certain order.

    Sums are float64 of float32 log-probabilities. A sequence has at least two tokens, at most one more than the context
    of the model, and asks for at least one (`fit` cuts it so).
    """
    device = model.embedding.weight.device
    longest = max((len(sequence.tokens) - 1 for sequence in sequences), default=0)
    budget = max(budget or BUDGET_TOKENS[device.type], longest)
    config = model.config
    layers = [TreePages(config, dtype=model.dtype, device=device) for _ in range(config.n_layers)]
    nats, missing = np.zeros(len(sequences)), np.array([sequence.n_scored for sequence in sequences])
    greedy = np.ones(len(sequences), dtype=bool)

    def take(read: _Read) -> Iterator[Score]:
        found_2A = read.found_2A.cpu().double().numpy()
        np.add.at(nats, read.owners_A, found_2A[0])
        np.logical_and.at(greedy, read.owners_A, found_2A[1] > 0)
        np.subtract.at(missing, read.owners_A, 1)
        for number in np.unique(read.owners_A).tolist():
            if not missing[number]:
                yield Score(number, float(nats[number]), bool(greedy[number]))

    waiting: _Read | None = None
    for kept, nodes, is_kept in cut(grow(sequences, SHARED_LEAST[device.type]), budget):
        runs = [Run(node.tokens[node.start : node.end], path_slots(node)) for node in nodes]
        tokens_N, step = tree_step(
            kept, runs, is_kept=is_kept, is_latent=config.latent is not None, dtype=model.dtype, device=device
        )
        asked = _places(nodes, sequences, device)
        hidden_MD = run_step(model, tokens_N, step, layers, asked.places_M)
        following = _Read(asked.owners_A, _ask(model, hidden_MD, asked)) if len(asked.owners_A) else None
        if waiting is not None:
            yield from take(waiting)
        waiting = following
    if waiting is not None:
        yield from take(waiting)


def fit(context: Sequence[int], continuation: Sequence[int], seq_len: int) -> tuple[Asked, int]:
    """The sequence of a context and what follows it, cut from the left to what a model of this context can see.

    Also returns how many tokens were cut. A continuation that is longer by itself loses its first ones.
    """
    tokens = np.array([*context, *continuation], dtype=np.int32)
    n_cut = max(0, len(tokens) - seq_len - 1)
    return Asked(tokens[n_cut:], min(len(continuation), seq_len)), n_cut


def _places(nodes: Sequence[Node], sequences: Sequence[Asked], device: torch.device) -> _Places:
    """Everything that is asked for behind these nodes' tokens, in one transfer to the device."""
    places, targets, owners, first = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int32)], [], 0
    for node in nodes:
        for number, start, end in node.places:
            places.append(np.arange(start, end) + (first - node.start))
            targets.append(sequences[number].tokens[start + 1 : end + 1])
            owners += [number] * (end - start)
        first += node.n_tokens
    places_M, row_A = np.unique(np.concatenate(places), return_inverse=True)
    order = np.argsort(row_A, kind="stable")  # so that a chunk of rows has its asked tokens together
    row_A, target_A, owners_A = row_A[order], np.concatenate(targets)[order], np.array(owners, dtype=np.int64)[order]
    numbers = torch.from_numpy(np.concatenate([places_M, row_A, target_A]).astype(np.int64))
    places_on, rows_on, targets_on = numbers.to(device, non_blocking=True).split(
        [len(places_M), len(row_A), len(row_A)]
    )
    return _Places(places_on, row_A, rows_on, targets_on, owners_A)


def _ask(model: Transformer, hidden_MD: Tensor, asked: _Places) -> Tensor:
    """Log-probabilities of all asked tokens and whether they are the most likely ones, [2, A]."""
    if hidden_MD.device.type == "cpu" and model.head.numerics is None:
        return _ask_columns(model.head.weight, hidden_MD, asked)
    n_rows, found = max(1, HEAD_VALUES // model.config.vocab_size), []
    for start in range(0, len(hidden_MD), n_rows):
        low, high = np.searchsorted(asked.row_A, [start, start + n_rows])
        log_p_MV = model.head(hidden_MD[start : start + n_rows]).log_softmax(-1, dtype=torch.float32)
        rows, wanted = asked.row_of_A[low:high] - start, asked.target_A[low:high]
        is_best_A = log_p_MV.argmax(-1)[rows] == wanted
        found.append(torch.stack((log_p_MV[rows, wanted], is_best_A.float())))
    return torch.cat(found, 1)


def _ask_columns(weight_VD: Tensor, hidden_MD: Tensor, asked: _Places) -> Tensor:
    """The same with the vocabulary in chunks of columns, all rows at once: logits that stay in a cache.

    Of a chunk's log-softmax only the largest value is used: minus the log of its sum, counted from its maximum.
    """
    order = asked.target_A.argsort()
    row_A, target_A = asked.row_of_A[order], asked.target_A[order]
    firsts = range(0, len(weight_VD), HEAD_COLUMNS)
    bounds = torch.searchsorted(target_A, torch.tensor([*firsts, len(weight_VD)])).tolist()
    largest, below, logits, leads = [], [], [], []
    for first, low, high in zip(firsts, bounds, bounds[1:]):
        weight_KD = weight_VD[first : first + HEAD_COLUMNS].to(hidden_MD.dtype)
        logits_MK = F.linear(hidden_MD, weight_KD)
        largest.append(logits_MK.amax(-1).float())
        below.append(logits_MK.log_softmax(-1, dtype=torch.float32).amax(-1))
        rows, columns = row_A[low:high], target_A[low:high] - first
        logits.append(logits_MK[rows, columns].float())
        leads.append(logits_MK[rows].argmax(-1) == columns)
    largest_XM = torch.stack(largest)
    log_z_M = (largest_XM - torch.stack(below)).logsumexp(0)
    leads_A = torch.cat(leads) & (largest_XM.argmax(0)[row_A] == target_A // HEAD_COLUMNS)
    found_2A = torch.empty(2, len(order))
    found_2A[:, order] = torch.stack((torch.cat(logits) - log_z_M[row_A], leads_A.float()))
    return found_2A
