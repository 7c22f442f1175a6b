"""Answers of a model to prompts, by cached decoding: greedy or sampled, until a stop token or a limit.

Prompts of one length share a batch, because a cache has one length for all its rows; rows that have stopped leave it.
Greedy answers depend on the model and the prompt alone; sampled ones also on the seed and on the other prompts.

Shapes: B prompts of one length, T tokens, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isoflop.model.transformer import Transformer

BATCH = 128  # assumption: the caches of a small model fit


class Answer(NamedTuple):
    """What a model said."""

    ids: list[int]
    """Without the stop token."""
    stopped: bool
    """False: the limit was reached."""


@torch.no_grad()
def answer(
    model: Transformer,
    prompts: Sequence[np.ndarray],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    n_known: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """An answer to each prompt, in their order; temperature 0 takes the most likely token.

    Padding rows of the vocabulary, from `n_known` on, are never chosen (0: all are known). A prompt that leaves no room
    in the model's context gets an answer of no tokens.
    """
    was_training = model.training
    model.eval()
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    stops = torch.tensor(sorted(stop_ids), device=device)
    found: list[Answer] = [Answer([], False)] * len(prompts)
    done = 0
    for length in sorted(by_length):
        for start in range(0, len(by_length[length]), BATCH):
            rows = by_length[length][start : start + BATCH]
            tokens_BT = torch.from_numpy(np.stack([prompts[row] for row in rows]).astype(np.int64)).to(device)
            limit = min(max_new_tokens, model.config.seq_len - length)
            if limit > 0:
                answers = _decode(model, tokens_BT, stops, limit, temperature, generator, n_known)
                for row, item in zip(rows, answers, strict=True):
                    found[row] = item
            done += len(rows)
            if on_progress is not None:
                on_progress(done, len(prompts))
    model.train(was_training)
    return found


def _decode(
    model: Transformer,
    tokens_BT: Tensor,
    stops: Tensor,
    limit: int,
    temperature: float,
    generator: torch.Generator,
    n_known: int,
) -> list[Answer]:
    batch, length = tokens_BT.shape
    cache = model.new_cache(batch, length + limit)
    alive = torch.arange(batch, device=tokens_BT.device)
    chosen_BT = torch.zeros(batch, limit, dtype=torch.long, device=tokens_BT.device)
    n_chosen_B = torch.full((batch,), limit, device=tokens_BT.device)
    new_BT = tokens_BT
    for step in range(limit):
        logits_BV = model.head(model(new_BT, cache)[:, -1]).float()  # scores are compared at least in float32
        if n_known:
            logits_BV[:, n_known:] = -torch.inf
        if temperature:
            chosen_B = torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=generator)[:, 0]
        else:
            chosen_B = logits_BV.argmax(-1)
        ended_B = torch.isin(chosen_B, stops)
        n_chosen_B[alive[ended_B]] = step
        chosen_BT[alive, step] = chosen_B
        if ended_B.any():
            alive, chosen_B = alive[~ended_B], chosen_B[~ended_B]
            if not len(alive):
                break
            cache.keep((~ended_B).nonzero()[:, 0].tolist())
        new_BT = chosen_B[:, None]
    counts = n_chosen_B.tolist()
    stopped_B = torch.ones(batch, dtype=torch.bool, device=alive.device)
    stopped_B[alive] = False
    return [Answer(row[:n], stopped) for row, n, stopped in zip(chosen_BT.tolist(), counts, stopped_B.tolist())]
