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

from isoflop.evaluation.forest import Asked, Node, cut, grow, path_slots
from isoflop.model.transformer import Transformer
from isoflop.model.tree import Run, TreePages, tree_step

HEAD_VALUES = {"cpu": 2**21, "cuda": 2**28}
"""Logits that exist at once: on a CPU what its caches hold, on a GPU 1 GiB of float32 (assumption)."""
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
    for kept, nodes in cut(grow(sequences), budget):
        runs = [Run(node.tokens[node.start : node.end], path_slots(node)) for node in nodes]
        tokens_N, step = tree_step(kept, runs, is_latent=config.latent is not None, device=device)
        hidden_ND = model.step(tokens_N, step, layers)
        following = _ask(model, hidden_ND, nodes, sequences)
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


def _ask(model: Transformer, hidden_ND: Tensor, nodes: Sequence[Node], sequences: Sequence[Asked]) -> _Read | None:
    """Log-probabilities of all tokens that are asked for behind these nodes' tokens."""
    places, targets, owners, first = [], [], [], 0
    for node in nodes:
        for number, start, end in node.places:
            places.append(np.arange(start, end) + (first - node.start))
            targets.append(sequences[number].tokens[start + 1 : end + 1])
            owners.append(np.full(end - start, number))
        first += node.n_tokens
    if not places:
        return None
    places_M, row_A = np.unique(np.concatenate(places), return_inverse=True)
    order = np.argsort(row_A, kind="stable")  # so that a chunk of rows has its asked tokens together
    row_A, target_A, owners_A = row_A[order], np.concatenate(targets)[order], np.concatenate(owners)[order]
    numbers = torch.from_numpy(np.concatenate([places_M, row_A, target_A]).astype(np.int64))
    sizes = [len(places_M), len(row_A), len(row_A)]
    places_on, rows_on, targets_on = numbers.to(hidden_ND.device, non_blocking=True).split(sizes)
    hidden_MD, found = hidden_ND.index_select(0, places_on), []
    n_rows = max(1, HEAD_VALUES[hidden_ND.device.type] // model.config.vocab_size)
    for start in range(0, len(hidden_MD), n_rows):
        low, high = np.searchsorted(row_A, [start, start + n_rows])
        log_p_MV = model.head(hidden_MD[start : start + n_rows]).log_softmax(-1, dtype=torch.float32)
        rows, wanted = rows_on[low:high] - start, targets_on[low:high]
        is_best_A = log_p_MV.argmax(-1)[rows] == wanted
        found.append(torch.stack((log_p_MV[rows, wanted], is_best_A.float())))
    return _Read(owners_A, torch.cat(found, 1))
