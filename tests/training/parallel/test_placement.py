"""Expert replicas: the published example exactly, and what must hold for any loads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.errors import RecipeError
from isoflop.training.parallel.placement import Placement, place_experts

PUBLISHED = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
)
"""Loads of the example in the published balancer's description: 2 layers, 12 experts."""


@st.composite
def cases(draw: st.DrawFn) -> dict:
    """Loads and sizes for which the hierarchical policy is defined."""
    n_nodes = draw(st.integers(1, 3))
    n_groups = n_nodes * draw(st.integers(1, 3))
    n_gpus = n_nodes * draw(st.integers(1, 4))
    n_experts = n_groups * draw(st.integers(1, 4))
    n_replicas = (-(-n_experts // n_gpus) + draw(st.integers(0, 3))) * n_gpus
    size = 2 * n_experts
    loads = draw(st.lists(st.integers(0, 1000), min_size=size, max_size=size))
    return {
        "loads": np.array(loads).reshape(2, n_experts),
        "n_replicas": n_replicas,
        "n_groups": n_groups,
        "n_nodes": n_nodes,
        "n_gpus": n_gpus,
    }


def place(case: dict, **changes: object) -> Placement:
    sizes = {**case, **changes}
    return place_experts(sizes.pop("loads"), **sizes)


def test_the_published_example_is_reproduced_exactly():
    found = place_experts(PUBLISHED, n_replicas=16, n_groups=4, n_nodes=2, n_gpus=8)
    assert found.physical_to_logical.tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]


@given(case=cases(), policy=st.sampled_from(["hierarchical", "global"]))
@settings(max_examples=200)
def test_every_expert_has_a_place_and_the_three_tables_agree(case, policy):
    found = place(case, policy=policy)
    n_layers, n_experts = case["loads"].shape
    assert found.physical_to_logical.shape == (n_layers, case["n_replicas"])
    assert (found.n_replicas >= 1).all() and (found.n_replicas.sum(axis=1) == case["n_replicas"]).all()
    for layer in range(n_layers):
        for expert in range(n_experts):
            places = found.logical_to_physical[layer, expert]
            used = places[places >= 0]
            assert len(used) == found.n_replicas[layer, expert] == len(set(used.tolist()))
            assert (found.physical_to_logical[layer, used] == expert).all()
            assert (places[len(used) :] == -1).all()
    loads = found.gpu_loads(case["loads"], case["n_gpus"])
    assert loads.shape == (n_layers, case["n_gpus"])
    np.testing.assert_allclose(loads.sum(axis=1), case["loads"].sum(axis=1))


@given(case=cases())
@settings(max_examples=200)
def test_hierarchical_placement_keeps_a_group_within_one_node_and_nodes_alike(case):
    found = place(case)
    group_size = case["loads"].shape[1] // case["n_groups"]
    node_of_place = np.arange(case["n_replicas"]) // (case["n_replicas"] // case["n_nodes"])
    for row in found.physical_to_logical:
        nodes_of_group = [set(node_of_place[row // group_size == group]) for group in range(case["n_groups"])]
        assert all(len(nodes) == 1 for nodes in nodes_of_group)
        per_node = np.bincount([next(iter(nodes)) for nodes in nodes_of_group], minlength=case["n_nodes"])
        assert (per_node == case["n_groups"] // case["n_nodes"]).all()


@given(case=cases(), policy=st.sampled_from(["hierarchical", "global"]))
@settings(max_examples=300)
def test_the_busiest_gpu_is_never_busier_than_without_replication(case, policy):
    n_experts = case["loads"].shape[1]
    if n_experts % case["n_gpus"]:
        case["n_gpus"] = case["n_nodes"]  # the experts alone must fill the GPUs evenly to compare
        case["n_replicas"] = n_experts + case["n_replicas"] // case["n_nodes"] * case["n_nodes"]
    bare = place(case, n_replicas=n_experts, policy=policy).gpu_loads(case["loads"], case["n_gpus"])
    found = place(case, policy=policy).gpu_loads(case["loads"], case["n_gpus"])
    assert (found.max(axis=1) <= bare.max(axis=1) * (1 + 1e-6)).all()


@given(case=cases())
@settings(max_examples=50)
def test_the_same_loads_give_the_same_placement_and_their_unit_does_not_matter(case):
    first, again, scaled = place(case), place(case), place(case, loads=case["loads"] * 4)
    for other in (again, scaled):
        assert np.array_equal(first.physical_to_logical, other.physical_to_logical)
        assert np.array_equal(first.logical_to_physical, other.logical_to_physical)


def test_greedy_placement_worse_than_none_is_replaced():
    # 7 + 4 = 6 + 5 without replicas; greedy halves 7 and 6 and then can't do better than 11.5
    loads = np.array([[7, 6, 5, 4]])
    found = place_experts(loads, n_replicas=6, n_gpus=2)
    assert found.gpu_loads(loads, 2).tolist() == [[11.0, 11.0]]


def test_replicas_flatten_a_skewed_load():
    loads = 1000.0 / np.arange(1, 65)[None] ** 1.2
    few, many = (place_experts(loads, n_replicas=n, n_gpus=16).gpu_loads(loads, 16)[0] for n in (64, 80))
    assert few.max() / few.mean() > 3.0 and many.max() / many.mean() < 1.1


def test_groups_that_nodes_do_not_divide_are_placed_globally():
    sizes = {"n_replicas": 16, "n_groups": 4, "n_gpus": 8}
    auto = place_experts(PUBLISHED, n_nodes=8, **sizes)
    plain = place_experts(PUBLISHED, n_nodes=8, policy="global", **sizes)
    assert np.array_equal(auto.physical_to_logical, plain.physical_to_logical)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_replicas": 8}, "n_replicas = 8 must be at least the 12 experts"),
        ({"n_replicas": 18}, "n_replicas = 18 must be a multiple of n_gpus = 8; nearest: 16 or 24"),
        ({"n_groups": 5, "n_nodes": 1}, "experts = 12 must be a multiple of n_groups = 5"),
        ({"n_gpus": 7, "n_replicas": 14}, "n_gpus = 7 must be a multiple of n_nodes = 2"),
        ({"n_nodes": 3, "policy": "hierarchical"}, 'n_groups = 4 must be .* policy = "global"'),
        ({"n_gpus": 0}, "must be at least 1"),
        ({"loads": -PUBLISHED}, r"loads of shape \(2, 12\) must be"),
        ({"loads": PUBLISHED[0]}, r"loads of shape \(12,\) must be"),
    ],
)
def test_sizes_that_cannot_be_placed_are_refused(changes, message):
    case = {"loads": PUBLISHED, "n_replicas": 16, "n_groups": 4, "n_nodes": 2, "n_gpus": 8}
    with pytest.raises(RecipeError, match=message):
        place(case, **changes)
