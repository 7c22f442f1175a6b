"""The backtest of benchmarks/forecast.py: its split rules, its weights, and what it ships."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data" / "scaling"


@pytest.fixture(scope="module")
def forecast():
    spec = importlib.util.spec_from_file_location("forecast", ROOT / "benchmarks" / "forecast.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["forecast"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["forecast"]


def test_sources_weigh_equally_then_series_then_runs(forecast):
    rows = (
        [{"source": "a", "series": "x"}] * 3 + [{"source": "a", "series": "y"}] + [{"source": "b", "series": "z"}] * 2
    )
    np.testing.assert_allclose(forecast.weights(rows), [1 / 12] * 3 + [1 / 4] + [1 / 4] * 2)
    assert forecast.weighted_median(np.array([3.0, 1.0, 2.0]), np.array([0.1, 0.4, 0.5])) == 2.0


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data beside the checkout")
def test_no_run_is_predicted_that_the_fit_saw(forecast):
    series = forecast.public_series(DATA)
    assert [one.budgets for one in series].count(True) == 7 and len(series) == 11
    for one in series:
        found = list(forecast.splits(one))
        assert len(found) > 1 and (one.budgets or len(found) <= 8)
        for top, keep, test in found:
            assert not (keep & test).any() and one.runs["total_flops"][keep].max() <= top
            assert one.runs["total_flops"][test].min() > 1.5 * top


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data beside the checkout")
def test_a_split_of_chinchilla_is_forecast_within_two_percent(forecast):
    series = next(one for one in forecast.public_series(DATA) if one.name == "chinchilla")
    top, keep, test = list(forecast.splits(series))[2]
    rows = forecast.forecast((series, top, keep, test, 120))
    errors = np.array([row["center"] / row["measured"] - 1 for row in rows])
    assert len(rows) == test.sum() and np.median(np.abs(errors)) < 0.02
    assert np.mean([row["low"] <= row["measured"] <= row["high"] for row in rows]) > 0.7


def test_what_is_shipped_is_never_narrower_than_what_the_backtest_learned():
    """docs/forecast.md says why it is wider."""
    shipped = json.loads((ROOT / "isoflop/scaling/plan/drift.json").read_text())
    learned = json.loads((ROOT / "docs/studies/forecast/now.json").read_text())["learned"]
    for kind, values in learned.items():
        assert all(values[name] <= shipped[kind][name] <= 1.1 * values[name] for name in values)
