"""Which expert sits on which GPU: replicas for the busiest experts, packed so that every GPU has the same work.

In: how many tokens each routed expert received, per layer. Out: a `Placement`. Under expert parallelism the GPU with
the most tokens sets the pace, so experts that receive many tokens get replicas that share them, and each GPU gets an
equal number of replicas with loads that add up evenly.

    hierarchical   where the nodes divide the groups of node-limited routing: each group stays within one node, so a
                   token that may use few groups is sent to few nodes; replicas are made and packed inside each node
    global         otherwise: replicas anywhere

Both are greedy: a replica goes to the expert with the largest load per replica, then the heaviest replica to the
lightest GPU with a free place. All choices between equals fall to the lower number, so a result is the same everywhere.

Source: arXiv 2412.19437, section 3.4, and the policies of the load balancer published with it. Where we deviate: if the
greedy placement has a busier GPU than no replication at all, the further replicas are put beside their originals.

Shapes: L layers, E experts, P replicas (physical experts). No torch here.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.errors import RecipeError

Policy = Literal["auto", "hierarchical", "global"]


@dataclass(frozen=True)
class Placement:
    """Replicas of experts in the order of the GPUs: places g * P / n_gpus and following belong to GPU g."""

    physical_to_logical: np.ndarray
    """int64 [L, P]: expert of each place."""
    logical_to_physical: np.ndarray
    """int64 [L, E, most replicas of an expert]: places of each expert in the order they were made; -1 fills up."""
    n_replicas: np.ndarray
    """int64 [L, E]: replicas of each expert, at least 1."""

    def gpu_loads(self, loads: np.ndarray, n_gpus: int) -> np.ndarray:
        """Tokens of each GPU, [L, n_gpus], when the replicas of an expert share its tokens evenly."""
        share_LE = np.asarray(loads, dtype=np.float64) / self.n_replicas
        share_LP = np.take_along_axis(share_LE, self.physical_to_logical, axis=1)
        return share_LP.reshape(len(share_LP), n_gpus, -1).sum(axis=2)


def place_experts(
    loads: np.ndarray, *, n_replicas: int, n_groups: int = 1, n_nodes: int = 1, n_gpus: int, policy: Policy = "auto"
) -> Placement:
    """Place `n_replicas` replicas of the experts on `n_gpus` GPUs, the same number on each.

    `loads` [L, E] are tokens per expert, of any unit; `n_groups` is that of node-limited routing. `auto` is
    hierarchical where n_nodes divides n_groups.

    Raises:
        RecipeError: sizes that do not divide, fewer replicas than experts, negative loads.
    """
    loads = np.asarray(loads, dtype=np.float64)
    if policy == "auto":
        policy = "hierarchical" if n_groups % n_nodes == 0 else "global"
    if policy == "global":
        n_groups = n_nodes = 1
    _check(loads, n_replicas, n_groups, n_nodes, n_gpus)
    n_experts = loads.shape[1]
    expert_of_place, order_made = [], []
    for loads_E in loads:
        experts, ranks = _place_layer(loads_E, n_replicas, n_groups, n_nodes, n_gpus)
        if n_experts % n_gpus == 0:
            bare = _place_layer(loads_E, n_experts, n_groups, n_nodes, n_gpus)[0]
            if _busiest(loads_E, experts, n_gpus) > (1 + 1e-9) * _busiest(loads_E, bare, n_gpus):  # 1e-9: rounding
                experts, ranks = _beside_originals(loads_E, bare, n_replicas, n_gpus)
        expert_of_place.append(experts)
        order_made.append(ranks)
    physical_LP, rank_LP = np.array(expert_of_place), np.array(order_made)
    counts_LE = np.array([np.bincount(row, minlength=n_experts) for row in physical_LP])
    places = np.full((*loads.shape, counts_LE.max()), -1, dtype=np.int64)
    layers_LP = np.broadcast_to(np.arange(len(loads))[:, None], physical_LP.shape)
    places[layers_LP, physical_LP, rank_LP] = np.arange(n_replicas)
    return Placement(physical_LP, places, counts_LE)


def _place_layer(
    loads_E: np.ndarray, n_replicas: int, n_groups: int, n_nodes: int, n_gpus: int
) -> tuple[np.ndarray, np.ndarray]:
    """Expert of each place and which replica of it this is, in the order of nodes and GPUs."""
    by_group = np.arange(len(loads_E)).reshape(n_groups, -1)
    node_of_group = _pack(loads_E[by_group].sum(axis=1), n_nodes)
    experts, ranks = [], []
    for groups in node_of_group:
        here = by_group[groups].ravel()
        chosen, made = _replicate(loads_E[here], n_replicas // n_nodes)
        share = (loads_E[here] / np.bincount(chosen))[chosen]
        places = np.concatenate(_pack(share, n_gpus // n_nodes))
        experts.append(here[chosen[places]])
        ranks.append(made[places])
    return np.concatenate(experts), np.concatenate(ranks)


def _pack(weights: np.ndarray, n_packs: int) -> list[list[int]]:
    """Items into packs of equal size: heaviest first, each into the lightest pack with room."""
    size = len(weights) // n_packs
    packs: list[list[int]] = [[] for _ in range(n_packs)]
    if size == 1:
        return [[item] for item in range(n_packs)]  # nothing to balance: as published, the order stays
    totals = np.zeros(n_packs)
    for item in np.argsort(-weights, kind="stable"):
        open_packs = [pack for pack in range(n_packs) if len(packs[pack]) < size]
        pack = min(open_packs, key=totals.__getitem__)
        packs[pack].append(int(item))
        totals[pack] += weights[item]
    return packs


def _replicate(loads_E: np.ndarray, n_replicas: int) -> tuple[np.ndarray, np.ndarray]:
    """Expert of each replica, every expert once and then the most loaded again and again; and which replica it is."""
    n_experts = len(loads_E)
    experts, ranks = np.arange(n_replicas), np.zeros(n_replicas, dtype=np.int64)
    counts = np.ones(n_experts, dtype=np.int64)
    for replica in range(n_experts, n_replicas):
        experts[replica] = busiest = int(np.argmax(loads_E / counts))
        ranks[replica] = counts[busiest]
        counts[busiest] += 1
    return experts, ranks


def _beside_originals(
    loads_E: np.ndarray, bare: np.ndarray, n_replicas: int, n_gpus: int
) -> tuple[np.ndarray, np.ndarray]:
    """The placement without replication, each GPU filled up with further replicas of its own busiest experts."""
    experts, ranks = [], []
    for own in bare.reshape(n_gpus, -1):
        chosen, made = _replicate(loads_E[own], n_replicas // n_gpus)
        experts.append(own[chosen])
        ranks.append(made)
    return np.concatenate(experts), np.concatenate(ranks)


def _busiest(loads_E: np.ndarray, experts: np.ndarray, n_gpus: int) -> float:
    share = (loads_E / np.bincount(experts, minlength=len(loads_E)))[experts]
    return float(share.reshape(n_gpus, -1).sum(axis=1).max())


def _check(loads: np.ndarray, n_replicas: int, n_groups: int, n_nodes: int, n_gpus: int) -> None:
    if loads.ndim != 2 or not loads.size or not np.isfinite(loads).all() or (loads < 0).any():
        raise RecipeError(f"loads of shape {loads.shape} must be [layers, experts] of finite numbers, at least 0")
    n_experts = loads.shape[1]
    if min(n_replicas, n_groups, n_nodes, n_gpus) < 1:
        raise RecipeError(
            f"n_replicas = {n_replicas}, n_groups = {n_groups}, n_nodes = {n_nodes} and n_gpus = {n_gpus} "
            f"must be at least 1"
        )
    if n_replicas < n_experts:
        raise RecipeError(
            f"n_replicas = {n_replicas} must be at least the {n_experts} experts; the smallest multiple of n_gpus = "
            f"{n_gpus} is {-(-n_experts // n_gpus) * n_gpus}"
        )
    for name, value, divisor_name, divisor in (
        ("experts", n_experts, "n_groups", n_groups),
        ("n_groups", n_groups, "n_nodes", n_nodes),
        ("n_gpus", n_gpus, "n_nodes", n_nodes),
        ("n_replicas", n_replicas, "n_gpus", n_gpus),
    ):
        if value % divisor:
            low = value // divisor * divisor
            raise RecipeError(
                f"{name} = {value} must be a multiple of {divisor_name} = {divisor}; nearest: {max(low, divisor)} or "
                f"{low + divisor}"
                + ('; policy = "global" needs no groups and nodes' if "n_nodes" in divisor_name else "")
            )
