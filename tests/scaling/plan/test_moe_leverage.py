"""What published laws expect experts to be worth: the known answer, the range, the warning below their scale."""

import pytest

from isoflop.scaling.plan.moe_leverage import expected_leverage, joint_leverage, ling_leverage
from isoflop.scaling.sweep.family import ExpertFamily, Family
from isoflop.scaling.sweep.shapes import shape

FINE = Family(experts=ExpertFamily(n_experts=64, n_active=6, n_shared=2, granularity=8.0))


def test_lings_law_gives_its_published_example():
    assert float(ling_leverage(1 / 32, 11.3, 1e22)) == pytest.approx(7.2, rel=0.02)


def test_lings_best_granularity_is_the_papers():
    grid = [2.0 + 0.1 * step for step in range(200)]
    best = max(grid, key=lambda g: float(ling_leverage(1 / 32, g, 1e22)))
    assert 8 <= best <= 12 and best == pytest.approx(11.3, abs=0.15)


def test_leverage_grows_with_compute_and_with_fewer_active_experts():
    assert ling_leverage(1 / 32, 8, 1e20) < ling_leverage(1 / 32, 8, 1e22)
    assert ling_leverage(1 / 8, 8, 1e22) < ling_leverage(1 / 32, 8, 1e22)
    assert 1.0 < joint_leverage(4.0, 1e20) < joint_leverage(16.0, 1e20) < joint_leverage(32.0, 1e22)


def test_one_expert_is_worth_one():
    assert joint_leverage(1.0, 1e20) == pytest.approx(1.0, rel=1e-3)


def test_the_prior_of_a_shape_states_its_range_and_sources():
    config = shape(2048, vocab_size=102400, seq_len=4096, family=FINE)
    found, warnings = expected_leverage(config, 1e21)
    assert found is not None and warnings == []
    assert found.low <= min(found.by_law.values()) <= max(found.by_law.values()) <= found.high
    assert found.low <= found.center / 1.25 and found.high >= 1.25 * found.center
    assert "2507.17702" in found.source and "2502.05172" in found.source and "prior" in found.meaning
    assert found.activated_share == pytest.approx(8 / 66)


def test_below_the_tested_compute_the_prior_warns_and_a_dense_shape_has_none():
    config = shape(128, vocab_size=512, seq_len=64, family=FINE)
    found, warnings = expected_leverage(config, 1e14)
    assert found is not None and "lie below the compute" in warnings[0]
    assert expected_leverage(shape(128, vocab_size=512, seq_len=64), 1e14) == (None, [])
