"""Balance and multi-token prediction for packed samples: losses per sample, loads without padding.

As `training/pretrain/terms.StepTerms` does for windows of text; there a sequence is a row, here it is a sample, so that
packing changes nothing. A sample's balance loss counts once, whatever its length, and the mean over the step's samples
is added to the mean over its targets. Source: arXiv 2412.19437, eq. 17 to 20 and 25; arXiv 2405.04434, eq. 23 to 25.

Shapes: B rows, T tokens, E experts, A active experts, S samples, R = B T.
"""

import torch
from torch import Tensor

from isoflop.model.config import ExpertConfig
from isoflop.model.experts import Routing
from isoflop.model.transformer import Losses, Transformer
from isoflop.training.balance import counted_load
from isoflop.training.pretrain.recipe import BalanceSection, MtpSection
from isoflop.training.pretrain.terms import LoadHook


class SampleTerms(LoadHook):
    """The terms of one model: `objective` for each micro-batch, `finish` after the optimizer."""

    def __init__(self, model: Transformer, balance: BalanceSection, mtp: MtpSection, *, moves_bias: bool):
        super().__init__(model, balance, moves_bias=moves_bias)
        self._mtp = mtp

    def objective(self, losses: Losses, samples_BT: Tensor, n_targets: Tensor, n_samples: Tensor) -> Tensor:
        """What a micro-batch adds to the step's objective before it is divided by the step's targets."""
        total = losses.nats
        if losses.mtp_nats:
            total = total + self._mtp.weight / len(losses.mtp_nats) * torch.stack(losses.mtp_nats).sum()
        if self._experts is None or not losses.routings:
            return total
        counted = [samples_BT[:, : routing.chosen_BTA.shape[1]] for routing in losses.routings]
        self._loads_LE += torch.stack(
            [
                counted_load(routing.chosen_BTA, self._experts.n_experts, samples >= 0)
                for routing, samples in zip(losses.routings, counted, strict=True)
            ]
        )
        added = [
            sample_balance_loss(routing, self._experts, self._balance, samples)
            for routing, samples in zip(losses.routings, counted, strict=True)
        ]
        return total + torch.stack(added).sum() * (n_targets / n_samples)


def sample_balance_loss(routing: Routing, experts: ExpertConfig, section: BalanceSection, samples_BT: Tensor) -> Tensor:
    """Sum over samples of the sequence and expert losses of each; tokens with a number below 0 are padding."""
    samples_R = samples_BT.flatten()
    affinity_RE = routing.affinity_BTE.flatten(0, 1)
    n_samples = int(samples_R.max()) + 1 if len(samples_R) else 0
    if n_samples <= 0:
        return affinity_RE.sum() * 0.0
    # rows of padding go to a sample of their own, which is then left out
    place_R = torch.where(samples_R >= 0, samples_R, n_samples)
    size_S = torch.zeros(n_samples + 1, device=place_R.device).index_add(0, place_R, torch.ones_like(affinity_RE[:, 0]))
    share_RE = affinity_RE / (affinity_RE.sum(-1, keepdim=True) + 1e-20)
    mean_SE = torch.zeros(n_samples + 1, experts.n_experts, dtype=share_RE.dtype, device=place_R.device)
    mean_SE = mean_SE.index_add(0, place_R, share_RE) / size_S.clamp(min=1)[:, None]

    def load(chosen_BTA: Tensor) -> Tensor:
        flat_R = place_R[:, None] * experts.n_experts + chosen_BTA.flatten(0, 1)
        counts = torch.bincount(flat_R.flatten(), minlength=(n_samples + 1) * experts.n_experts)
        counts_SE = counts.view(n_samples + 1, -1).to(mean_SE.dtype)
        return counts_SE * experts.n_experts / (experts.n_active * size_S.clamp(min=1)[:, None])

    total = mean_SE.sum() * 0.0
    if section.sequence_loss:
        biased = experts.selection_bias or experts.n_groups > 1
        # the published sum counts the top affinities, as if there were neither bias nor groups
        preferred_BTA = (
            routing.affinity_BTE.detach().topk(experts.n_active, -1).indices if biased else routing.chosen_BTA
        )
        total = total + section.sequence_loss * (load(preferred_BTA) * mean_SE)[:n_samples].sum()
    if section.expert_loss:
        total = total + section.expert_loss * (load(routing.chosen_BTA) * mean_SE)[:n_samples].sum()
    return total
