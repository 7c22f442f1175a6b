"""Next cells: the update is Bayes' own, larger budgets beat drift, purchases do what was promised, the loop ends."""

import json

import numpy as np
import pytest
from law_examples import TRUTH

from isoflop.cli import main as cli
from isoflop.errors import PlanError, RecipeError
from isoflop.recipe import from_tree, load_recipe, write_json, write_recipe
from isoflop.scaling.fit.joint import fit
from isoflop.scaling.laws import Laws, surface_loss
from isoflop.scaling.plan.allocate import best_split
from isoflop.scaling.plan.grow import grow_until, grown, ladder_of, offered_by, spent
from isoflop.scaling.plan.next_cells import Run, choose, next_cells, offered
from isoflop.scaling.plan.predict import predict
from isoflop.scaling.sweep.ladder import Ladder, LadderRecipe, plan_ladder
from isoflop.scaling.sweep.records import RunRecord, append_record, read_records

BUDGETS = (1e12, 3e12, 9e12, 2.7e13)
TARGET = 3e14
NOISE = 0.003


def measured(scale, n_tokens, seed):
    """A record of the truth with one run's noise."""
    loss = float(surface_loss(TRUTH, scale, n_tokens)) * (1 + NOISE * np.random.default_rng(seed).standard_normal())
    return {"flops_per_token": scale, "n_tokens": n_tokens, "bits_per_byte": loss}


@pytest.fixture(scope="module")
def runs():
    found = []
    for budget in BUDGETS:
        for spread in (0.5, 0.7, 1.0, 1.4, 2.0):
            scale = 0.012 * budget**0.62 * spread
            found.append(measured(scale, budget / scale, len(found)) | {"budget_flops": budget})
    return found


@pytest.fixture(scope="module")
def laws(runs):
    return fit(runs, bootstrap=200, hyper=False)


def best(laws, flops=TARGET):
    split = best_split(laws, flops)
    return split.scale, split.n_tokens


def test_variance_left_is_that_of_bayesian_linear_regression():
    """Worlds y = x w, w ~ N(0, I): after measuring rows A with noise s, var(x w) = x (I + A'A / s^2)^-1 x'."""
    generator = np.random.default_rng(0)
    x, A, noise = generator.standard_normal(3), generator.standard_normal((6, 3)), 0.5
    rows = np.vstack([x, A])
    steps = list(choose(rows @ rows.T, np.full(6, noise**2), [[k] for k in range(6)]))
    bought = []
    for index, left in steps:
        bought.append(index)
        exact = x @ np.linalg.inv(np.eye(3) + A[bought].T @ A[bought] / noise**2) @ x
        assert left == pytest.approx(exact, rel=1e-9)
    assert len(bought) == 6
    first = [x @ np.linalg.inv(np.eye(3) + np.outer(a, a) / noise**2) @ x for a in A]
    assert bought[0] == int(np.argmin(first))


def test_price_decides_between_equal_cells():
    joint = np.array([[1.0, 0.8, 0.8], [0.8, 1.0, 0.8], [0.8, 0.8, 1.0]])
    for cheap in (0, 1):
        cost = np.where(np.arange(2) == cheap, 1.0, 1.2)
        assert next(choose(joint, np.full(2, 0.1), [[0], [1]], cost=cost))[0] == cheap


def test_a_forecast_that_drift_makes_wide_asks_for_three_sizes_of_a_larger_budget(laws):
    far = next_cells(laws, *best(laws, 1e16), width=0.001, most=20)
    larger = [run for run in far.runs if run.budget_flops > max(BUDGETS)]
    assert len(larger) >= 6 and {run.budget_flops for run in larger[:3]} == {8.1e13}
    assert all(len({run.scale for run in larger if run.budget_flops == one.budget_flops}) == 3 for one in larger)
    assert list(far.width_left) == sorted(far.width_left, reverse=True)
    assert far.least_width < far.width_left[-1] < far.target.relative_width
    for run in far.runs:
        assert run.scale * run.n_tokens == pytest.approx(run.budget_flops)


def test_nothing_is_asked_for_where_the_interval_is_narrow_or_noise_alone_is_left(laws):
    there = next_cells(laws, *best(laws), width=0.5)
    assert there.reached and not there.runs and "no further run is needed" in there.verdict
    repeat = [[Run(BUDGETS[0], *best(laws, BUDGETS[0]), cost=1e12)]]
    none = next_cells(laws, *best(laws), width=0.001, offers=repeat, least_gain=0.9)
    assert not none.reached and not none.runs and f"{none.least_width:.2%}" in none.verdict


def test_no_offer_repeats_a_tested_size(laws, runs):
    for run in (run for offer in offered(laws, TARGET) for run in offer):
        tested = [row["flops_per_token"] for row in runs if row["budget_flops"] == run.budget_flops]
        assert all(abs(np.log(run.scale / size)) > np.log(1.1) for size in tested)
        assert run.budget_flops <= TARGET
    assert len(offered(laws, 1e50)) <= len(offered(laws, max(BUDGETS))) + 20  # not one for each factor 3


def test_buying_what_is_named_narrows_the_interval_about_as_said(laws, runs):
    found = next_cells(laws, *best(laws), width=0.001, most=4)
    more = [measured(run.scale, run.n_tokens, 100 + k) for k, run in enumerate(found.runs)]
    more = [row | {"budget_flops": run.budget_flops} for row, run in zip(more, found.runs)]
    again = predict(fit(runs + more, bootstrap=200, hyper=False), *best(laws)).relative_width
    assert again < found.target.relative_width
    assert again == pytest.approx(found.width_left[-1], rel=0.35)


def test_targets_below_the_sweep_are_refused(laws):
    with pytest.raises(PlanError, match="the target of 1e\\+04 FLOPs lies below the smallest budget"):
        next_cells(laws, 100.0, 100.0)


def test_widths_out_of_range_are_refused(laws):
    with pytest.raises(PlanError, match=r"width = 1\.5 must lie between 0 and 1"):
        next_cells(laws, *best(laws), width=1.5)


# the ladder that grows


def ladder(**section):
    tree = {"study": "test", "ladder": {"budgets": list(BUDGETS), **section}, "model": {"vocab_size": 512}}
    tree["allocation"] = {"coefficient": 0.012, "exponent": 0.62}
    return plan_ladder(from_tree(tree, LadderRecipe))


def sweep_into(path):
    """Stands for a sweep: the truth with noise, for every cell that has no record yet; counts what it ran."""
    ran = []

    def sweep(planned):
        for cell in planned.cells:
            if cell.cell_id not in ran:
                row = measured(cell.flops_per_token, cell.n_tokens, int(cell.cell_id, 16) % 2**32)
                append_record(path, RunRecord(cell.cell_id, budget_flops=cell.budget_flops, cooled=True,
                                              total_flops=cell.total_flops, **row))  # fmt: skip
                ran.append(cell.cell_id)
        return path

    return sweep, ran


def test_cells_that_are_added_change_no_other_and_what_is_there_is_not_offered():
    plain = ladder()
    near = {"ladder": {"cells": [[BUDGETS[0], plain.cells[-1].flops_per_token], [8.1e13, 1e7], [2.4e14, 1e7]]}}
    larger = ladder(cells=near["ladder"]["cells"])
    assert {cell.cell_id for cell in plain.cells} < {cell.cell_id for cell in larger.cells}
    assert len(larger.cells) == len(plain.cells) + 3
    one, two = ladder(cells=[[8.1e13, 1e7]]), ladder(cells=[[8.1e13, 1e7], [2.4e14, 1e7]])
    assert {cell.cell_id for cell in one.cells} < {cell.cell_id for cell in two.cells}


def test_a_ladder_may_be_cells_alone_but_not_nothing(laws, tmp_path):
    runs = next_cells(laws, *best(laws), width=0.001).runs
    write_recipe(tmp_path / "next.toml", ladder_of(laws, runs))
    planned = plan_ladder(load_recipe(tmp_path / "next.toml", LadderRecipe))
    assert len(planned.cells) == len(runs)
    for run in runs:
        assert any(
            cell.budget_flops == run.budget_flops and cell.flops_per_token == pytest.approx(run.scale, rel=0.25)
            for cell in planned.cells
        )
    with pytest.raises(RecipeError, match=r"ladder.cells"):
        plan_ladder(from_tree({"ladder": {}}, LadderRecipe))


def test_the_loop_ends_at_the_width(tmp_path):
    sweep, ran = sweep_into(tmp_path / "records.jsonl")
    goal = {"target_flops": TARGET, "max_flops": 1e15, "laws_file": tmp_path / "laws.json", "bootstrap": 150}
    said = []
    first = grow_until(ladder(), sweep, width=0.5, **goal)
    width = first.target.relative_width * 0.9
    found = grow_until(ladder(), sweep, width=width, **goal, say=said.append)
    assert found.reached and len(said) >= 2 and len(ran) > len(ladder().cells)
    assert Laws.read(tmp_path / "laws.json").n_runs


def test_the_loop_never_spends_more_than_it_may(tmp_path):
    sweep, ran = sweep_into(tmp_path / "records.jsonl")
    limit = 1.02 * spent(ladder())
    goal = {"target_flops": TARGET, "width": 0.001, "laws_file": tmp_path / "laws.json", "bootstrap": 150}
    found = grow_until(ladder(), sweep, max_flops=limit, **goal)
    assert not found.reached and not found.runs
    costs = {cell.cell_id: cell.total_flops for cell in ladder().cells}
    assert sum(1 for name in ran if name not in costs) * min(BUDGETS) * 0.97 <= 0.02 * spent(ladder())
    with pytest.raises(RecipeError, match="--max-flops"):
        grow_until(ladder(), sweep, max_flops=limit / 2, **goal)


def test_offers_of_a_ladder_are_its_shapes(laws):
    planned = ladder()
    held = {(cell.budget_flops, cell.flops_per_token) for cell in planned.cells}
    offers = offered_by(planned, laws, TARGET)
    assert offers
    for offer in offers:
        for run in offer:
            assert (run.budget_flops, run.scale) not in held
            assert run.cost == pytest.approx(run.budget_flops, rel=0.02)
        assert len(grown(planned, laws, offer).cells) == len(planned.cells) + len(offer)


# the command


def test_the_command_writes_a_recipe_that_adds_to_the_ladder(laws, tmp_path, capsys):
    laws.write(tmp_path / "laws.json")
    write_recipe(tmp_path / "ladder.toml", ladder().recipe)
    given = ["--budget-flops", "3e14", "--width", "0.001", "--out", str(tmp_path / "next.toml")]
    for _ in range(2):  # its own recipe may be replaced
        cli.main(["next", str(tmp_path / "laws.json"), *given, "--json", str(tmp_path / "next.json"),
                  "--ladder", str(tmp_path / "ladder.toml")])  # fmt: skip
    found = json.loads((tmp_path / "next.json").read_text())
    planned = plan_ladder(load_recipe(tmp_path / "next.toml", LadderRecipe))
    assert len(planned.cells) == len(ladder().cells) + len(found["cells"]) > len(ladder().cells)
    assert not found["reached"] and found["width"] > found["cells"][-1]["width_left"]
    assert "width left" in capsys.readouterr().out


def test_the_command_says_when_the_interval_is_reached_and_writes_no_recipe(laws, tmp_path, capsys):
    laws.write(tmp_path / "laws.json")
    cli.main(["next", str(tmp_path / "laws.json"), "--budget-flops", "3e14", "--width", "0.9",
              "--out", str(tmp_path / "next.toml")])  # fmt: skip
    assert "no further run is needed" in capsys.readouterr().out and not (tmp_path / "next.toml").exists()


def test_a_sweep_until_a_width_grows_its_ladder_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    write_recipe(tmp_path / "recipe.toml", ladder().recipe)
    out = tmp_path / "sweep"
    sweep, ran = sweep_into(out / "records.jsonl")
    fails = {"after": len(ladder().cells)}

    def run_sweep(cells, folder, **_):
        kept = [cell for cell in cells if len(ran) < fails["after"] or cell.cell_id in ran]
        write_json(folder / "ladder.json", {})
        write_json(folder / "sweep.json", {"n_cells": len(cells)})
        return read_records(sweep(Ladder(ladder().recipe, BUDGETS, tuple(kept), (), ())))

    monkeypatch.setattr("isoflop.scaling.sweep.run.run_sweep", run_sweep)
    monkeypatch.setattr("isoflop.scaling.plan.grow.fit", lambda path, bootstrap: fit(path, bootstrap=120, hyper=False))
    width = "0.04"
    given = ["sweep", str(tmp_path / "recipe.toml"), "--no-calibrate", "--out", str(out), "--until-width", width]
    given += ["--target-flops", str(TARGET), "--max-flops", "1e15", "--json", str(tmp_path / "found.json")]
    with pytest.raises(SystemExit) as stopped:  # in its second round, after the ladder grew
        cli.main(given)
    assert stopped.value.code == 130 and load_recipe(out / "ladder.toml", LadderRecipe).ladder.cells
    fails["after"] = 1000
    cli.main(given)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["next"]["reached"] and found["recorded"] == len(ran) > len(ladder().cells)
    n_ran = len(ran)
    cli.main(given)
    assert len(ran) == n_ran and "going on with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["next", "LAWS"], "needs the target"),
        (["next", "LAWS", "--n-params", "1e6"], "--n-tokens|n_tokens"),
        (["next", "LAWS", "--budget-flops", "1e14", "--calibrate"], "--calibrate has no effect without --ladder"),
        (["next", "LAWS", "--budget-flops", "1e300"], "--budget-flops = 1e+300 must be above 0 and at most 1e+50"),
        (["sweep", "RECIPE", "--until-width", "0.05"], "--target-flops"),
        (["sweep", "RECIPE", "--max-flops", "1e14"], "--max-flops has no effect without --until-width"),
    ],
)
def test_what_is_missing_is_said(arguments, message, laws, tmp_path, capsys):
    laws.write(tmp_path / "laws.json")
    write_recipe(tmp_path / "ladder.toml", ladder().recipe)
    places = {"LAWS": str(tmp_path / "laws.json"), "RECIPE": str(tmp_path / "ladder.toml")}
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(places.get(word, word)) for word in arguments])
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert any(part in text for part in message.split("|"))
