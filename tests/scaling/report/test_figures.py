"""Figures: drawn from records and laws, the same bytes every time, absent where the data is absent."""

import sys

import numpy as np
import pytest
from synthetic_study import make_metrics, make_record, make_study, true_loss, true_scale

from isoflop.errors import DataError
from isoflop.pages.plot import count, power_text, spread, style, svg_text
from isoflop.scaling.report.figures import draw_figures, figures_of
from isoflop.scaling.report.law_figures import curve_of
from isoflop.scaling.report.run_figures import smooth, trunk_saving
from isoflop.scaling.report.study import as_record, hyper_settings, law_curves, read_study, target_laws

pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install isoflop[report]")


@pytest.fixture(scope="module")
def study():
    records, laws, plan, score = make_study()
    return read_study(records, laws, plan, score)


def test_every_figure_is_drawn_twice_with_the_same_bytes(tmp_path):
    records, laws, plan, score = make_study()
    options = {"records": records, "laws": laws, "plan": plan, "score": score, "target_metrics": make_metrics()}
    first = draw_figures(tmp_path / "one", **options, formats=("svg",))
    second = draw_figures(tmp_path / "two", **options, formats=("svg",))
    assert list(first) == ["isoflop", "compute", "allocation", "residuals", "hyper", "trunks", "training"]
    for name, [path] in first.items():
        assert path.read_bytes() == second[name][0].read_bytes(), name
        assert b"<dc:date>" not in path.read_bytes()


def test_png_is_written_at_readme_width(tmp_path):
    records, laws, *_ = make_study(target=False, hyper=False)
    [path] = draw_figures(tmp_path, records=records, laws=laws, formats=("png",))["isoflop"]
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(header[16:20], "big") == 1680


@pytest.mark.parametrize("left_out", ["parabola", "surface", "lstar", "resamples", "noise", "leave_out", "conventions"])
def test_laws_without_one_part_still_give_figures(left_out):
    records, laws, plan, score = make_study()
    thin = {key: value for key, value in laws.items() if key != left_out}
    found = figures_of(read_study(records, thin, plan, score))
    assert "compute" in found
    assert ("allocation" in found) == (left_out != "parabola")
    assert ("residuals" in found) == (left_out != "surface")


def test_failed_resamples_and_unusable_vertices_do_not_break_a_figure():
    records, laws, plan, score = make_study()
    laws["resamples"]["lstar"][3] = [None, None, None]
    laws["resamples"]["n_allocation"][5] = [None, 0.5]
    laws["parabola"]["vertices"][0] |= {"scale_opt": None, "used": False}
    laws["parabola"]["vertices"][1] |= {"inside": False, "used": True}
    found = read_study(records, laws, plan, score)
    assert len(found.vertices) == 3
    assert set(figures_of(found)) >= {"isoflop", "compute", "allocation"}


def test_records_alone_give_curves_without_laws():
    records, *_ = make_study(target=False, hyper=False)
    assert set(figures_of(read_study(records))) == {"isoflop", "compute", "trunks"}


def test_nothing_to_draw_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match="no finished run with flops_per_token, n_tokens and bits_per_byte"):
        draw_figures(tmp_path, records=[])
    with pytest.raises(DataError, match="'jpg' is unknown; use svg or png"):
        draw_figures(tmp_path, records=make_study()[0], formats=("jpg",))


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install isoflop\[report\]"), style():
        pass


def test_svg_for_a_page_has_unique_ids_and_page_colours(study):
    figures = figures_of(study)
    one, two = (svg_text(figures[name], name, f"the {name}") for name in ("isoflop", "compute"))
    assert one.startswith("<svg ")
    assert 'aria-label="the isoflop"' in one
    assert "var(--ink, #1d2129)" in one
    assert 'id="isoflop-' in one
    assert 'id="compute-' in two
    assert 'href="#isoflop-' in one
    assert 'href="#compute-' not in one


def test_diverged_runs_and_targets_are_no_cells(study):
    assert len(study.cells) == 40
    assert len(study.diverged) == 1
    assert study.target.predicted == pytest.approx(study.target.measured * 1.003)
    assert len(study.tuned) == 21, "a learning-rate/batch grid of 20 counts as its best run"


def test_laws_at_the_target_match_the_formula(study):
    rows = {row.law: row for row in target_laws(study)}
    expected = true_loss(study.target.scale, study.target.tokens)
    assert rows["surface_log_huber"].centre == pytest.approx(expected, rel=1e-9)
    assert rows["lstar"].centre == pytest.approx(expected, rel=1e-4)
    assert rows["surface_varpro"].low < rows["surface_varpro"].centre < rows["surface_varpro"].high


def test_curves_of_the_laws_agree_at_the_optimum(study):
    flops = np.geomspace(4e11, 2e13, 5)
    curves = law_curves(study, flops)
    scale = true_scale(flops)
    np.testing.assert_allclose(curves["surface_log_huber"], true_loss(scale, flops / scale), rtol=1e-9)
    np.testing.assert_allclose(curves["lstar"], curves["surface_log_huber"], rtol=1e-6)


def test_drawn_parabola_has_its_bottom_near_the_true_optimum(study):
    budget = study.budgets[1]
    fine = np.geomspace(2e5, 3e6, 400)
    assert fine[curve_of(study, budget, fine).argmin()] == pytest.approx(true_scale(budget), rel=0.25)


def test_trunk_saving_of_four_doublings_with_a_fifth_cooldown_is_1_60():
    rng = np.random.default_rng(0)
    rows = [make_record(scale, tokens, 1.0, rng) for scale in (1e5, 2e5) for tokens in (1e6, 2e6, 4e6, 8e6)]
    saving = trunk_saving(list(map(as_record, rows)))
    assert saving.factor == pytest.approx(15 / (0.8 * 8 + 0.2 * 15), rel=1e-12)
    assert saving.separate == pytest.approx(3e5 * 15e6)
    assert trunk_saving([as_record({**row, "trunk_id": None}) for row in rows]) is None


def test_a_grid_of_rates_and_batches_is_recognised(study):
    [(flops, rows)] = hyper_settings(study.cells)
    assert flops == pytest.approx(2e11) and len(rows) == 20


def test_labels_are_moved_apart_in_order():
    placed = spread([0.0, 0.01, 0.02, 5.0], 1.0)
    assert placed == sorted(placed)
    assert min(np.diff(placed)) >= 1.0 - 1e-12
    assert placed[3] == 5.0
    assert np.mean(placed[:3]) == pytest.approx(0.01)


def test_numbers_are_written_for_readers():
    assert [count(value) for value in (512, 1e3, 1234567, 2.5e10, 999_999)] == ["512", "1k", "1.23M", "25B", "1M"]
    assert power_text(1e12) == "$10^{12}$"
    assert power_text(3.2e12) == r"$3.2\times 10^{12}$"
    assert power_text(9.99e11) == "$10^{12}$"


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    np.testing.assert_allclose(smooth(np.full(50, 3.0)), 3.0)
    assert smooth(np.array([5.0, 1.0]))[0] == 5.0
