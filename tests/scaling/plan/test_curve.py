"""The predicted curve of a plan: its shape by schedule, what the curves of a sweep say, and who reads it."""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from law_examples import example_laws

from isoflop.errors import RecipeError
from isoflop.recipe import from_tree, to_toml, write_recipe
from isoflop.scaling.plan.choose import plan as make_plan
from isoflop.scaling.plan.curve import SweepCurves, sweep_curves
from isoflop.scaling.report.plan_rows import plan_rows
from isoflop.scaling.sweep.records import RunRecord, append_record, read_records
from isoflop.training.forecast import arrived
from isoflop.training.pretrain.recipe import PretrainRecipe, check
from isoflop.training.schedule_law import Schedule

LAWS = example_laws()
STUDIES = Path(__file__).parents[3] / "docs/studies"


def planned(schedule: str, **more):
    hyper = {"learning_rate": 0.002, "batch_tokens": {"coefficient": 0.02, "total_flops": 0.3}}
    template = {"train": {"schedule": schedule}, "data": {"tokens": "tokens"}}
    return make_plan(LAWS, budget_flops=1.5e15, vocab_size=512, seq_len=128, hyper=hyper, template=template, **more)


def test_the_curve_ends_at_the_prediction_and_falls_when_the_rate_falls():
    shapes = {}
    for schedule in ("constant_cooldown", "multi_step", "cosine"):
        found = planned(schedule)
        curve = tomllib.loads(to_toml(found.recipe))["prediction"]["curve"]
        assert curve["of_final"][-1] == 1.0 and curve["steps"][-1] == found.steps
        assert (np.diff(curve["of_final"]) < 0).all() and "final_nats" not in curve
        shapes[schedule] = np.interp(np.array([0.5, 0.79]) * found.steps, curve["steps"], curve["of_final"])
    at_half, before_cooldown = np.array(list(shapes.values())).T
    assert at_half[2] < at_half[0]  # a cosine has spent some of its gain at half time
    assert before_cooldown[0] > 1.02 and before_cooldown[1] > 1.02  # the others gain it in the end
    rows = dict(plan_rows(planned("cosine")))
    assert rows["predicted curve"].endswith("at 100% of the steps")


def test_training_reads_the_curve_and_a_damaged_one_is_refused():
    losses = [1.0, 1.1, 1.2, 1.3, 1.4]
    cells = [RunRecord("r", bits_per_byte=x, loss_nats=2.5 * x, train_loss_nats=2.5 * x - 0.1) for x in losses]
    found = planned("cosine", curves=SweepCurves(2.0, cells))
    tree = tomllib.loads(to_toml(found.recipe))
    curve = tree["prediction"]["curve"]
    assert found.prediction is not None
    assert curve["final_nats"][0] == pytest.approx(2.5 * found.prediction.center - 0.1)
    assert curve["gain_nats"] == pytest.approx(2 * from_tree(found.recipe, PretrainRecipe).usual_gain())
    check(from_tree(tree, PretrainRecipe))
    for damaged in (7, {**curve, "of_final": [1.0]}, {**curve, "gain_nats": "much"}):
        tree["prediction"]["curve"] = damaged
        with pytest.raises(RecipeError, match=r"prediction\.curve must hold steps, of_final and gain_nats"):
            check(from_tree(tree, PretrainRecipe))


def test_the_curves_of_a_sweep_say_what_a_fall_gains_with_and_without_trunks(tmp_path, tiny_recipe):
    generator = np.random.default_rng(0)
    for number, d_model in enumerate((8, 8, 16, 16, 32, 32)):
        sizes = {"d_model": d_model, "d_head": d_model // 2}
        recipe = tiny_recipe(model=sizes, train={"n_tokens": 64 * 1000 * (1 + number % 2), "learning_rate": 0.004})
        n_steps = recipe.n_steps()
        schedule, steps = Schedule([recipe.rate(step) for step in range(n_steps)]), np.arange(1, n_steps + 1)
        loss = 2.5 + 2.0 * (schedule.sums[steps] / 0.004 / 10) ** -0.4 + 0.02 * generator.standard_normal(n_steps)
        loss -= 2 * recipe.usual_gain() * arrived(schedule, steps)
        lines = [json.dumps({"step": int(s), "loss_nats": v}) + "\n" for s, v in zip(steps, loss, strict=True)]
        cell, branch = tmp_path / f"cells/c{number}", 0
        write_recipe(cell / "recipe.toml", recipe, header="")
        if number % 2:  # its constant stage lies in the folder of the trunk, which went on further
            branch = 4 * n_steps // 5
            trunk = tmp_path / f"trunks/t{number}"
            trunk.mkdir(parents=True)
            (trunk / "metrics.jsonl").write_text("".join(lines[: branch + 50]), encoding="utf-8")
        (cell / "metrics.jsonl").write_text("".join(lines[branch:]), encoding="utf-8")
        end = float(loss[-100:].mean())
        record = RunRecord(f"c{number}", trunk_id=f"t{number}", loss_nats=end + 0.3, train_loss_nats=end)
        append_record(tmp_path / "records.jsonl", record)
    found = sweep_curves(tmp_path)
    assert found is not None
    assert found.gain == pytest.approx(2.0**0.5, rel=0.05)  # half way to the usual one
    assert len(found.cells) == 6 and sweep_curves(tmp_path / "cells") is None


@pytest.mark.parametrize("unit", ["bits_per_byte", "loss_nats"])
def test_the_training_loss_of_a_target_follows_from_its_validation_loss(unit):
    """On recorded studies on CPUs: the gap between both losses grows towards the target."""
    misses, inside = [], 0
    for path in [*sorted(STUDIES.glob("demo-*/records.jsonl")), STUDIES / "benchmarks/records.jsonl"]:
        records = [r for r in read_records(path) if r.train_loss_nats]
        curves = SweepCurves(1.0, [r for r in records if r.kind == "cell" and r.status == "finished"])
        (target,) = (r for r in records if r.kind == "target")
        loss = getattr(target, unit)
        exact = SimpleNamespace(unit=unit, center=loss, low=loss, high=loss)
        center, low, high = curves.final_nats(exact)  # type: ignore[arg-type]
        assert target.train_loss_nats is not None
        inside += low <= target.train_loss_nats <= high
        misses.append(abs(center / target.train_loss_nats - 1))
    assert len(misses) == 21 and inside >= 18
    assert np.mean(misses) < 0.012 and max(misses) < 0.03
