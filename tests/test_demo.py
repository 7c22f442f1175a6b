"""The demo's own decisions; the whole of it is what `make demo` runs."""

import logging
import math
from contextlib import nullcontext
from importlib import resources
from types import SimpleNamespace

import pytest

from isoflop import demo
from isoflop.errors import RecipeError
from isoflop.recipe import load_recipe
from isoflop.scaling.sweep.ladder import LadderRecipe
from isoflop.scaling.sweep.records import RunRecord
from isoflop.scaling.sweep.speed import SpeedModel

SPEED = SpeedModel(per_step_s=2e-3, per_layer_s=5e-4, per_flop_s=1 / 45e9, per_param_s=0.0)


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """The ladder of a demo of so many minutes on a machine as fast as SPEED."""
    monkeypatch.setattr(demo, "measure_ladder", lambda recipe: SPEED)
    monkeypatch.setattr(demo, "ladder_on_tokens", lambda recipe: (recipe, "0" * 64))
    monkeypatch.setattr(demo, "_target_seconds", lambda recipe, budget: 60.0)
    with resources.as_file(resources.files("isoflop") / "presets") as presets:
        preset = load_recipe(presets / "demo_sweep.toml", LadderRecipe)

    def plan(minutes: float):
        return demo._planned_ladder(tmp_path, preset, minutes=minutes, seed=3, workers=2)

    return plan


def test_too_few_minutes_are_named_as_the_user_gave_them(planned, tmp_path):
    message = r"--minutes 0\.001 \(make demo: MINUTES\) must be more, 15 is usual .* is the sweep's: ladder\.minutes = "
    with pytest.raises(RecipeError, match=message):
        planned(0.001)
    assert not (tmp_path / "ladder.toml").exists()


def test_a_ladder_is_decided_once(planned, tmp_path):
    first = planned(15.0)
    written = (tmp_path / "ladder.toml").read_bytes()
    again = planned(2.0)  # a restart goes on with what was decided, whatever the machine does by then
    assert again.budgets == first.budgets and [c.cell_id for c in again.cells] == [c.cell_id for c in first.cells]
    assert (tmp_path / "ladder.toml").read_bytes() == written and "seeds = [3]" in written.decode()


def test_a_demo_of_other_minutes_or_another_seed_is_not_gone_on_with(planned, tmp_path):
    planned(15.0)
    same = {"say": print, "bar": None, "should_stop": lambda: True}
    for minutes, seed in ((15.0, 4), (8.0, 3)):
        message = f"holds a demo of --minutes 15 --seed 3, not of {minutes:g} and {seed} .*delete the folder"
        with pytest.raises(RecipeError, match=message):
            demo.run_demo(tmp_path, minutes=minutes, seed=seed, workers=1, **same)
    with pytest.raises(KeyboardInterrupt):  # this one goes on, and is stopped before its first stage
        demo.run_demo(tmp_path, minutes=15.0, seed=3, workers=1, **same)


@pytest.mark.parametrize(("target_s", "late_s", "share"), [(300.0, 60.0, 1.0), (900.0, 90.0, 0.7), (900.0, 600.0, 0.6)])
def test_a_machine_that_became_slow_gets_a_smaller_target(monkeypatch, target_s, late_s, share):
    """15 minutes: what is left of 24, when the sweep ended `late_s` after the 12th."""
    monkeypatch.setattr(demo, "_target_seconds", lambda recipe, budget: target_s)
    assert demo._share_left(None, 1e12, late_s, 15.0) == pytest.approx(share)


def test_a_newcomer_is_not_told_which_law_a_demo_cannot_have(planned, tmp_path, monkeypatch, caplog):
    def off(cell):
        return math.log(cell.flops_per_token / allocation.scale_at(cell.budget_flops))

    def swept(cells, *_, **__):
        keys = ("budget_flops", "flops_per_token", "n_tokens", "learning_rate", "batch_tokens", "total_flops")
        return [
            RunRecord(
                cell.cell_id,
                status="finished",
                cooled=True,
                bits_per_byte=1 + 2 * (cell.budget_flops / 1e11) ** -0.15 + 0.03 * off(cell) ** 2,
                **{key: getattr(cell, key) for key in (*keys, "total_flops_exact")},
            )
            for cell in cells
        ]

    allocation = planned(15.0).recipe.allocation
    monkeypatch.setattr("isoflop.corpus.build.build_corpus", lambda *_, **__: {"files": []})
    monkeypatch.setattr("isoflop.tokens.shards.build_tokens", lambda *_, **__: {})
    monkeypatch.setattr("isoflop.scaling.sweep.run.run_sweep", swept)
    same = {"say": print, "bar": lambda unit: nullcontext(SimpleNamespace(stage=None, sweep=None))}
    with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):  # before the target is trained
        demo.run_demo(tmp_path, minutes=15.0, seed=3, workers=1, should_stop=(tmp_path / "plan.toml").is_file, **same)
    assert (tmp_path / "laws.json").is_file() and "hyper-parameter" not in caplog.text
