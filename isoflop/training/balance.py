"""Balance between experts: what a step adds to the loss for it, and how it is measured.

Losses are taken per sequence, from what a layer decided (`Routing`). Counts carry no gradient; the affinities do.

Shapes: B batch, T tokens, E experts, A active experts, N devices, L layers with experts.
"""

import math

import torch
from torch import Tensor

from isoflop.model.config import ExpertConfig
from isoflop.model.experts import Routing
from isoflop.training.pretrain.recipe import BalanceSection


def balance_loss(routing: Routing, experts: ExpertConfig, section: BalanceSection) -> Tensor | None:
    """Weighted sum of the losses that are on, added up over the sequences; None when all are off.

    Source: sequence_loss arXiv 2412.19437, eq. 17 to 20; the others arXiv 2405.04434, eq. 23 to 31.
    """
    total: Tensor | None = None
    sharing_BE = mean_share(routing.affinity_BTE)

    def add(weight: float, load: Tensor, share: Tensor) -> None:
        nonlocal total
        term = weight * (load * share).sum()
        total = term if total is None else total + term

    if section.sequence_loss:
        biased = experts.selection_bias or experts.n_groups > 1
        # the published sum counts the top affinities, as if there were neither bias nor groups
        preferred_BTA = (
            routing.affinity_BTE.detach().topk(experts.n_active, -1).indices if biased else routing.chosen_BTA
        )
        add(section.sequence_loss, relative_load(preferred_BTA, experts.n_experts), sharing_BE)
    if section.expert_loss:
        add(section.expert_loss, relative_load(routing.chosen_BTA, experts.n_experts), sharing_BE)
    sharing_BN = sharing_BE.unflatten(1, (section.n_devices, -1)).sum(-1)
    if section.device_loss:
        load_BE = relative_load(routing.chosen_BTA, experts.n_experts)
        add(section.device_loss, load_BE.unflatten(1, (section.n_devices, -1)).mean(-1), sharing_BN)
    if section.communication_loss:
        add(section.communication_loss, device_load(routing.chosen_BTA, experts, section.n_devices), sharing_BN)
    return total


def mean_share(affinity_BTE: Tensor) -> Tensor:
    """P of the papers: affinities as shares of each token's sum, averaged over the sequence, [B, E]."""
    return (affinity_BTE / (affinity_BTE.sum(-1, keepdim=True) + 1e-20)).mean(1)


def relative_load(chosen_BTA: Tensor, n_experts: int) -> Tensor:
    """f of the papers: choices of each expert in a sequence over the even share, [B, E] float32; 1 is balanced."""
    n_batch, n_tokens, n_active = chosen_BTA.shape
    load_BE = torch.zeros(n_batch, n_experts, device=chosen_BTA.device)
    load_BE.scatter_add_(1, chosen_BTA.flatten(1), torch.ones_like(chosen_BTA, dtype=torch.float32).flatten(1))
    return load_BE * (n_experts / (n_active * n_tokens))


def device_load(chosen_BTA: Tensor, experts: ExpertConfig, n_devices: int) -> Tensor:
    """f'' of V2: tokens sent to each device over the even share N / (M T), [B, N].

    M is the number of devices that a token may be sent to: n_groups_kept where groups are devices, else as many as it
    has active experts.
    """
    n_batch, n_tokens, n_active = chosen_BTA.shape
    most = experts.n_groups_kept if experts.n_groups == n_devices else min(n_active, n_devices)
    device_BTA = chosen_BTA // (experts.n_experts // n_devices)
    sent_BTN = torch.zeros(n_batch, n_tokens, n_devices, device=chosen_BTA.device)
    sent_BTN.scatter_(2, device_BTA, 1.0)  # once a device, however many of its experts the token uses
    return sent_BTN.sum(1) * (n_devices / (most * n_tokens))


def counted_load(chosen_BTA: Tensor, n_experts: int, counted_BT: Tensor) -> Tensor:
    """Choices of each expert at the positions that count, [E] int64."""
    load_E = torch.zeros(n_experts, dtype=torch.int64, device=chosen_BTA.device)
    weight_BTA = counted_BT[..., None].expand_as(chosen_BTA)
    return load_E.scatter_add_(0, chosen_BTA.flatten(), weight_BTA.flatten().long())


def bias_direction(loads_LE: Tensor) -> Tensor:
    """+1 where an expert had less than the mean of its layer, -1 where it had more, [L, E]; exact, in whole numbers."""
    return torch.sign(loads_LE.sum(-1, keepdim=True) - loads_LE.shape[-1] * loads_LE)


STATISTICS = ("max_violation", "entropy", "dead")


def load_statistics(loads_LE: Tensor) -> Tensor:
    """Per layer, [L, 3] float32, in the order of STATISTICS.

    max_violation: (largest - mean) / mean, 0 is balanced (Source: MaxVio of arXiv 2408.15664); entropy: of the shares,
    over ln E, 1 is balanced; dead: experts that no token went to.
    """
    n_experts = loads_LE.shape[-1]
    share_LE = loads_LE.float() / loads_LE.sum(-1, keepdim=True)
    violation_L = share_LE.amax(-1) * n_experts - 1
    entropy_L = torch.special.entr(share_LE).sum(-1) / math.log(n_experts) if n_experts > 1 else violation_L + 1
    return torch.stack((violation_L, entropy_L, (loads_LE == 0).sum(-1).float()), dim=-1)


def by_name(statistics: list[float]) -> dict[str, list[float]]:
    """Flattened [L, 3] as lists per statistic, the numbers of dead experts whole."""
    found = {name: statistics[index :: len(STATISTICS)] for index, name in enumerate(STATISTICS)}
    return {**found, "dead": [int(count) for count in found["dead"]]}
