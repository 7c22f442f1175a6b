"""Bits per byte on held-out shards, by domain.

bits per byte = negative log-likelihood in nats of the counted targets / (ln 2 * bytes of those targets), so losses of
different tokenizers can be compared. Targets that start a document carry no bytes and are not counted; the end of a
document is, as part of the message (docs/scaling.md).
"""

import contextlib
import math

import torch
from torch import Tensor

from isoflop.errors import DataError
from isoflop.model.experts import Routing
from isoflop.model.transformer import Transformer
from isoflop.training.balance import by_name, counted_load, load_statistics


@torch.no_grad()
def validate(model: Transformer, windows_by_domain: dict[str, list[tuple[Tensor, Tensor, int]]]) -> dict[str, object]:
    """Loss and bits per byte per domain and pooled over all bytes, and the load of experts over all of it.

    `max_violation_global` is the mean over layers of (largest load - mean) / mean, each load counted over the whole
    validation set (Source: MaxVio_global of arXiv 2408.15664).

    Shapes: each window group is (tokens [B, T + 1], counted [B, T] bool, bytes of the counted targets).
    Raises: DataError when there is nothing to validate on.
    """
    device = model.embedding.weight.device
    model.eval()
    by_domain: dict[str, dict[str, float]] = {}
    pooled = {"nats": 0.0, "bytes": 0, "targets": 0}
    loads: list[Tensor] = []
    for domain, groups in windows_by_domain.items():
        nats = torch.zeros((), dtype=torch.float64, device=device)
        n_bytes = n_targets = 0
        for tokens_BT, counted_BT, group_bytes in groups:
            targets_BT = torch.where(counted_BT, tokens_BT[:, 1:], -1)
            targets_BT = targets_BT.to(device)
            with _eager_if_mixed(model):
                found = model.losses(tokens_BT[:, :-1].to(device), targets_BT, with_mtp=False)
            nats += found.nats.double()
            loads += [_loads(found.routings, targets_BT >= 0)] if found.routings else []
            n_bytes += group_bytes
            n_targets += int(counted_BT.sum())
        if not n_bytes:
            continue
        by_domain[domain] = _figures(float(nats), n_bytes, n_targets)
        pooled["nats"] += float(nats)
        pooled["bytes"] += n_bytes
        pooled["targets"] += n_targets
    if not pooled["bytes"]:
        raise DataError("the tokens folder has no validation shard with text; build it with a held-out share above 0")
    total = _figures(pooled["nats"], int(pooled["bytes"]), int(pooled["targets"]))
    figures = {**total, "bits_per_byte_by_domain": {k: v["bits_per_byte"] for k, v in by_domain.items()}}
    if not loads:
        return figures
    by_layer = by_name(load_statistics(torch.stack(loads).sum(0)).flatten().tolist())
    violation = by_layer["max_violation"]
    return {**figures, "expert_load": by_layer, "max_violation_global": sum(violation) / len(violation)}


def _eager_if_mixed(model: Transformer) -> contextlib.AbstractContextManager:
    """Without compiled blocks where there are two kinds of them.

    Every domain ends with a batch of a size of its own, and compiling both kinds for each would take longer than
    validating, and more variants than PyTorch keeps of one function.
    """
    mixed = model.config.experts is not None
    return torch.compiler.set_stance("force_eager") if mixed else contextlib.nullcontext()


def _loads(routings: list[Routing], counted_BT: Tensor) -> Tensor:
    """Choices per layer and expert at counted positions, [L, E]."""
    n_experts = routings[0].affinity_BTE.shape[-1]
    return torch.stack([counted_load(routing.chosen_BTA, n_experts, counted_BT) for routing in routings])


def _figures(nats: float, n_bytes: int, n_targets: int) -> dict[str, float]:
    return {
        "loss_nats": nats / n_targets,
        "bits_per_byte": nats / (math.log(2) * n_bytes),
        "n_bytes": n_bytes,
        "n_targets": n_targets,
    }
