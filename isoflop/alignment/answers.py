"""Answers of a model to prompts: greedy or sampled, until a stop token or a limit, by the serving engine.

Greedy answers depend on the model and the prompt alone; sampled ones also on the seed and on the prompt's place.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import nn

from isoflop.model.transformer import Transformer
from isoflop.serving.engine import Engine
from isoflop.serving.options import EngineOptions
from isoflop.serving.request import Sampling

MAX_ROWS = 128  # assumption: the pages of a small model fit


class Answer(NamedTuple):
    """What a model said."""

    ids: list[int]
    """Without the stop token."""
    stopped: bool
    """False: the limit was reached."""


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
    engine = Engine(_to_be_asked(model), options=EngineOptions(max_rows=MAX_ROWS, seed=seed), n_tokens=n_known)
    sampling = Sampling(max_tokens=max_new_tokens, temperature=temperature, stop_ids=tuple(stop_ids))
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) < model.config.seq_len]
    done = engine.complete([prompts[index].tolist() for index in fitting], sampling, on_progress=on_progress)
    found = [Answer([], False)] * len(prompts)
    for index, one in zip(fitting, done, strict=True):
        stopped = one.finish_reason == "stop"
        found[index] = Answer(one.ids[:-1] if stopped else one.ids, stopped)
    return found


def _to_be_asked(model: Transformer) -> Transformer:
    """A model of the same weights, not copied, that an engine may cast and change while the other goes on training."""
    weights = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()}
    asked = copy.deepcopy(model, weights)
    asked.drop_mtp()
    return asked
