"""Losses of alignment as pure functions of log-probabilities and scores; each pair has one value, nothing is averaged.

    d = [lp(chosen) - lp_ref(chosen)] - [lp(rejected) - lp_ref(rejected)]      lp: sum over an answer and its EOS

    sigmoid        -(1 - e) log s(beta d) - e log s(-beta d)        e: label_smoothing, 0 in DPO itself
    robust         [-(1 - e) log s(beta d) + e log s(-beta d)] / (1 - 2 e)
    sigmoid_norm   -log s(beta d'), each log-ratio of d' divided by the length of its own answer
    ipo            (d' - 1 / (2 beta))^2
    reward model   -log s(r_chosen - r_rejected - margin) + c (r_chosen + r_rejected)^2

Sources: DPO arXiv 2305.18290, eq. 7; label smoothing (cDPO) Mitchell 2023; robust arXiv 2403.00409, eq. 12; IPO arXiv
2310.12036, eq. 17, with averages per token, as its authors confirmed; centring arXiv 2312.09244. The names are those of
trl, whose "sigmoid" ignores label smoothing.

Shapes: P pairs.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PairLoss = Literal["sigmoid", "robust", "sigmoid_norm", "ipo"]


class Sides(NamedTuple):
    """A figure of both answers of each pair."""

    chosen_P: Tensor
    rejected_P: Tensor


class PairTerms(NamedTuple):
    """What a batch of pairs gives, one value a pair."""

    loss_P: Tensor
    rewards: Sides
    """beta * (lp - lp_ref), without gradient: what metrics speak of."""

    @property
    def wins_P(self) -> Tensor:
        """1 where the chosen answer has the higher reward; a tie, as at step 0, is no win."""
        return (self.rewards.chosen_P > self.rewards.rejected_P).float()

    @property
    def margins_P(self) -> Tensor:
        """By how much."""
        return self.rewards.chosen_P - self.rewards.rejected_P


def pair_losses(
    log_probs: Sides,
    reference: Sides,
    lengths: Sides,
    *,
    beta: float,
    loss: PairLoss = "sigmoid",
    label_smoothing: float = 0.0,
) -> PairTerms:
    """Preference losses; `lengths` count the tokens of each answer with its EOS."""
    ratio_chosen_P = log_probs.chosen_P - reference.chosen_P
    ratio_rejected_P = log_probs.rejected_P - reference.rejected_P
    if loss in ("sigmoid_norm", "ipo"):
        difference_P = ratio_chosen_P / lengths.chosen_P - ratio_rejected_P / lengths.rejected_P
    else:
        difference_P = ratio_chosen_P - ratio_rejected_P
    if loss == "ipo":
        loss_P = (difference_P - 1 / (2 * beta)) ** 2
    else:
        right_P, wrong_P = F.logsigmoid(beta * difference_P), F.logsigmoid(-beta * difference_P)
        if loss == "robust":
            loss_P = (label_smoothing * wrong_P - (1 - label_smoothing) * right_P) / (1 - 2 * label_smoothing)
        else:
            loss_P = -(1 - label_smoothing) * right_P - label_smoothing * wrong_P
    rewards = Sides(beta * ratio_chosen_P.detach(), beta * ratio_rejected_P.detach())
    return PairTerms(loss_P, rewards)


def reward_losses(scores: Sides, *, margin: Tensor | float = 0.0, centre: float = 0.0) -> Tensor:
    """Bradley-Terry loss of each pair; `centre` pulls the mean of scores to 0, which the comparison leaves open."""
    loss_P = -F.logsigmoid(scores.chosen_P - scores.rejected_P - margin)
    return loss_P + centre * (scores.chosen_P + scores.rejected_P) ** 2 if centre else loss_P


def sum_by_sample(values_R: Tensor, samples_R: Tensor, n_samples: int) -> Tensor:
    """Sums of the rows of each sample, [n_samples]; rows with a number below 0 belong to none."""
    total = torch.zeros(n_samples, dtype=values_R.dtype, device=values_R.device)
    return total.index_add(0, samples_R.clamp(min=0), torch.where(samples_R >= 0, values_R, 0))
