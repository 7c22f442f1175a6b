"""Logits to tokens: what a request allows, in which shape, and the draw. Everything works row by row, on the device.

A row is one place where a token is drawn; with drafts a sequence has several, and each sees the drafted tokens before
it. So a row's result never depends on other rows. Processing, in this order: bias, grammar, penalties, temperature,
top-k, top-p (of what top-k left), min-p. Ids above the vocabulary are cut off before anything else.

Two log-probabilities of a drawn token: `raw`, of the model's own distribution, and `processed`, of the distribution it
was drawn from (at temperature 0 that is certainty: 0).

Shapes: M places, V tokens that may be drawn, K most likely ones.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isoflop.numerics.few_rows import most_likely
from isoflop.serving.noise import gumbel_rows
from isoflop.serving.request import Sampling


class Place(NamedTuple):
    """Where a token is drawn."""

    sampling: Sampling
    seed: int
    tokens: Sequence[int]
    """All tokens before it, drafts included."""
    n_prompt: int
    allowed: np.ndarray | None = None
    """Bits of the ids that a grammar allows, 32 a word; None: all."""

    @property
    def position(self) -> int:
        return len(self.tokens)


class LogProbs(NamedTuple):
    """Of one drawn token."""

    raw: float
    processed: float
    top: list[tuple[int, float]]
    """Most likely ids and their raw log-probabilities."""


class Drawn(NamedTuple):
    tokens: list[int]
    logprobs: list[LogProbs | None]
    broken: list[bool]
    """Where the model gave something that is no number: nothing of such a row may be used."""


def draw(logits_MV: Tensor, places: Sequence[Place]) -> Drawn:
    """One token for each place from its logits, already cut to the tokens that may be drawn."""
    processed_MV = process(logits_MV, places)
    noisy = [m for m, place in enumerate(places) if place.sampling.temperature > 0]
    scored_MV = processed_MV
    if noisy:
        noise = gumbel_rows([(places[m].seed, places[m].position) for m in noisy], logits_MV.shape[1], logits_MV.device)
        if len(noisy) == len(places):
            scored_MV = processed_MV + noise
        else:
            scored_MV = processed_MV.clone()
            scored_MV[noisy] += noise
    chosen_M = scored_MV.max(-1).indices  # argmax goes through the numbers one by one on a CPU
    best_M = logits_MV.gather(1, chosen_M[:, None])[:, 0]  # the largest of numbers and NaN is NaN
    packed = torch.stack((chosen_M.double(), best_M.double()))  # one transfer; ids are exact in float64
    (tokens, best) = packed.tolist()
    asked = [m for m, place in enumerate(places) if place.sampling.logprobs is not None]
    found: list[LogProbs | None] = [None] * len(places)
    if asked:
        for m, logprobs in zip(asked, _logprobs(logits_MV, processed_MV, chosen_M, places, asked), strict=True):
            found[m] = logprobs
    broken = [not np.isfinite(value) for value in best]
    return Drawn([int(token) for token in tokens], found, broken)


class PlainDraw(NamedTuple):
    """A draw that hangs on nothing but its logits and these."""

    temperature: float
    seed: int
    position: int


def draw_plain(logits_MV: Tensor, draws: Sequence[PlainDraw]) -> Tensor:
    """The tokens that `draw` gives, and how high they score, [M, 2] in float64; nothing waits for the device."""
    x_MV = logits_MV.float()
    if any(d.temperature not in (0, 1) for d in draws):
        x_MV = x_MV / torch.tensor([d.temperature or 1.0 for d in draws], device=x_MV.device)[:, None]
    noisy = [m for m, d in enumerate(draws) if d.temperature > 0]
    noise_RV = gumbel_rows([draws[m][1:] for m in noisy], x_MV.shape[1], x_MV.device)
    if len(noisy) == len(draws):
        return most_likely(x_MV + noise_RV)
    at_R = torch.tensor(noisy).to(x_MV.device, non_blocking=True)
    return most_likely(x_MV.index_add(0, at_R, noise_RV))


def as_drawn(tokens: list[int], scores: list[float]) -> Drawn:
    """Tokens that the device has chosen; a score that is no number shows that the model is broken there."""
    return Drawn(tokens, [None] * len(tokens), [not np.isfinite(score) for score in scores])


def process(logits_MV: Tensor, places: Sequence[Place]) -> Tensor:
    """The logits of the distribution that is drawn from, float32; what may not be drawn is -inf."""
    x_MV = logits_MV.float()
    if all(is_plain(p.sampling) and p.allowed is None and p.sampling.temperature in (0, 1) for p in places):
        return x_MV
    x_MV = x_MV.clone()
    for m, place in enumerate(places):
        _change_ids(x_MV[m], place)
    temperatures = [place.sampling.temperature for place in places]
    if any(t not in (0.0, 1.0) for t in temperatures):
        x_MV /= torch.tensor([t or 1.0 for t in temperatures], device=x_MV.device)[:, None]
    for wanted, cut in (
        ([m for m, p in enumerate(places) if 0 < p.sampling.top_k < x_MV.shape[1]], _cut_top_k),
        ([m for m, p in enumerate(places) if p.sampling.top_p < 1], _cut_top_p),
        ([m for m, p in enumerate(places) if p.sampling.min_p > 0], _cut_min_p),
    ):
        _apply(x_MV, wanted, [places[m].sampling for m in wanted], cut)
    return x_MV


def prompt_logprobs(logits_TV: Tensor, next_tokens: Sequence[int], n_top: int) -> list[LogProbs]:
    """Log-probabilities of the tokens that do come next."""
    raw_TV = logits_TV.float().log_softmax(-1)
    chosen = raw_TV.gather(1, torch.tensor(next_tokens, device=raw_TV.device)[:, None])[:, 0].tolist()
    top = raw_TV.topk(min(n_top, raw_TV.shape[1]), dim=-1)
    pairs = [list(zip(ids, values)) for ids, values in zip(top.indices.tolist(), top.values.tolist())]
    return [LogProbs(value, value, best) for value, best in zip(chosen, pairs, strict=True)]


def is_plain(s: Sampling) -> bool:
    """Whether it draws from the model's own distribution at some temperature: no filter, bias or penalty."""
    filtered = s.top_k > 0 or s.top_p < 1 or s.min_p > 0
    return not filtered and not _changes_ids(s)


def _changes_ids(s: Sampling) -> bool:
    penalised = s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0
    return bool(s.logit_bias) or penalised


def _change_ids(x_V: Tensor, place: Place) -> None:
    """Bias, grammar and penalties of one place, in place."""
    s, device = place.sampling, x_V.device
    if not _changes_ids(s) and place.allowed is None:
        return
    if s.logit_bias:
        ids = torch.tensor(list(s.logit_bias), device=device)
        x_V[ids] += torch.tensor([float(value) for value in s.logit_bias.values()], device=device)
    if place.allowed is not None:
        bits = np.unpackbits(place.allowed.view(np.uint8), bitorder="little")[: len(x_V)]
        forbidden = torch.ones(len(x_V), dtype=torch.bool)
        forbidden[: len(bits)] = torch.from_numpy(bits == 0)
        x_V.masked_fill_(forbidden.to(device), float("-inf"))
    if s.repetition_penalty != 1:
        ids = torch.tensor(sorted(set(place.tokens)), device=device)
        seen = x_V[ids]
        x_V[ids] = torch.where(seen > 0, seen / s.repetition_penalty, seen * s.repetition_penalty)
    if s.presence_penalty or s.frequency_penalty:
        counts = Counter(place.tokens[place.n_prompt :])
        if counts:
            ids = torch.tensor(list(counts), device=device)
            times = torch.tensor(list(counts.values()), device=device)
            x_V[ids] -= s.presence_penalty + s.frequency_penalty * times


def _apply(x_MV: Tensor, wanted: list[int], samplings: list[Sampling], cut: Callable[[Tensor, list[Sampling]], Tensor]):
    if not wanted:
        return
    if len(wanted) == len(x_MV):
        x_MV.masked_fill_(cut(x_MV, samplings), float("-inf"))
    else:
        rows = x_MV[wanted]
        x_MV[wanted] = rows.masked_fill(cut(rows, samplings), float("-inf"))


def _cut_top_k(x_MV: Tensor, samplings: list[Sampling]) -> Tensor:
    """What is less likely than the k-th most likely token; equals stay."""
    k_M = torch.tensor([s.top_k for s in samplings], device=x_MV.device)
    best_MK = x_MV.topk(max(s.top_k for s in samplings), dim=-1).values
    return x_MV < best_MK.gather(1, (k_M - 1)[:, None])


def _cut_top_p(x_MV: Tensor, samplings: list[Sampling]) -> Tensor:
    """What comes after the token with which the probabilities, largest first, reach top_p."""
    sorted_MV, order_MV = x_MV.sort(dim=-1, descending=True, stable=True)
    p_MV = sorted_MV.softmax(-1)
    before_MV = p_MV.cumsum(-1) - p_MV
    top_p_M1 = torch.tensor([s.top_p for s in samplings], device=x_MV.device)[:, None]
    cut_MV = before_MV >= top_p_M1
    cut_MV[:, 0] = False
    return torch.zeros_like(cut_MV).scatter_(1, order_MV, cut_MV)


def _cut_min_p(x_MV: Tensor, samplings: list[Sampling]) -> Tensor:
    """What is less likely than the share of the most likely one."""
    least_M1 = torch.tensor([s.min_p for s in samplings], device=x_MV.device).log()[:, None]
    return x_MV < x_MV.amax(-1, keepdim=True) + least_M1


def _logprobs(
    logits_MV: Tensor, processed_MV: Tensor, chosen_M: Tensor, places: Sequence[Place], asked: list[int]
) -> list[LogProbs]:
    raw_AV = logits_MV[asked].float().log_softmax(-1)
    chosen_A1 = chosen_M[asked][:, None]
    raw = raw_AV.gather(1, chosen_A1)[:, 0].tolist()
    processed = processed_MV[asked].log_softmax(-1).gather(1, chosen_A1)[:, 0].tolist()
    top = raw_AV.topk(min(max(places[m].sampling.logprobs or 0 for m in asked), raw_AV.shape[1]), dim=-1)
    ids, values = top.indices.tolist(), top.values.tolist()
    found = []
    for a, m in enumerate(asked):
        n_top = places[m].sampling.logprobs or 0
        certain = places[m].sampling.temperature == 0
        found.append(LogProbs(raw[a], 0.0 if certain else processed[a], list(zip(ids[a][:n_top], values[a][:n_top]))))
    return found
