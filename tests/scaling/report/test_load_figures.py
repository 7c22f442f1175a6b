"""Load of the experts: read from metrics as written, drawn per layer, summed up in the report, absent where unknown."""

import numpy as np
import pytest
from synthetic_study import make_metrics, make_study

from isoflop.scaling.report.load_figures import load_figure, load_values, read_load
from isoflop.scaling.report.page import write_report

pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install isoflop[report]")


def metrics_of_a_mixture(n_lines=50, n_layers=4):
    """Loads that even out: the deeper the layer, the slower; two experts of the last layer die and come back."""
    lines = make_metrics(600)
    for index in range(n_lines):
        decay = [np.exp(-index / (5 * (layer + 1))) for layer in range(n_layers)]
        load = {
            "max_violation": [0.1 + 3 * value for value in decay],
            "entropy": [1 - 0.3 * value for value in decay],
            "dead": [0] * (n_layers - 1) + [2 if index < 10 else 0],
        }
        lines.append({"step": 12 * (index + 1), "expert_load": load})
    return lines


def test_loads_are_read_in_order_with_one_column_per_layer():
    load = read_load(metrics_of_a_mixture())
    assert load is not None and load["max_violation"].shape == (50, 4)
    assert load["step"][0] == 12 and (np.diff(load["step"]) > 0).all()
    assert load["max_violation"][0] == pytest.approx(3.1) and load["dead"][:10].sum() == 20


@pytest.mark.parametrize(
    "lines",
    [
        [],
        make_metrics(100),
        metrics_of_a_mixture(1),
        [{"step": s, "expert_load": {"max_violation": [0.1], "entropy": [], "dead": [0]}} for s in range(5)],
        [{"step": s, "expert_load": {"max_violation": [None], "entropy": [1.0], "dead": [0]}} for s in range(5)],
    ],
    ids=["no lines", "dense run", "one line", "unequal lengths", "missing values"],
)
def test_nothing_is_drawn_of_a_run_that_says_nothing_of_its_experts(lines):
    assert read_load(lines) is None and load_figure(lines) is None and load_values(lines, None) is None


def test_the_figure_draws_every_layer_and_their_mean():
    figure = load_figure(metrics_of_a_mixture(n_layers=6))
    assert figure is not None
    violation, entropy, dead = figure.axes
    assert len(violation.lines) == len(entropy.lines) == 7 and len(dead.lines) == 1
    mean = violation.lines[-1]
    assert mean.get_linewidth() > violation.lines[0].get_linewidth()
    assert mean.get_ydata()[0] == pytest.approx(3.1) and violation.get_yscale() == "log"
    assert dead.lines[0].get_ydata()[:2].tolist() == [2, 2]


def test_the_table_has_the_end_of_training_and_the_validation_load():
    lines = metrics_of_a_mixture()
    found = load_values(lines, {"max_violation": [0.2, 0.4]})
    assert found["validated"] == pytest.approx(0.3)
    assert [row["layer"] for row in found["rows"]] == ["1", "2", "3", "4", "mean"]
    last = read_load(lines)["max_violation"][-5:].mean(axis=0)
    assert [row["max_violation"] for row in found["rows"]] == pytest.approx([*last, last.mean()])


def test_the_report_of_a_mixture_shows_its_load_and_that_of_a_dense_run_does_not(tmp_path):
    records, laws, plan, score = make_study()
    for name, lines in (("mixture", metrics_of_a_mixture()), ("dense", make_metrics())):
        path = write_report(
            tmp_path / f"{name}.html", records=records, laws=laws, plan=plan, score=score, target_metrics=lines
        )
        page = path.read_text(encoding="utf-8")
        assert ("Load of the experts" in page) == (name == "mixture")
        assert ("2408.15664" in page) == (name == "mixture")
        assert ('href="#load"' in page) == (name == "mixture")
