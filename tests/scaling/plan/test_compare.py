"""Comparisons: a known multiplier is found, ignorance is admitted and says what to run, units are guarded."""

import copy
import dataclasses
import json
import re

import numpy as np
import pytest
from law_examples import TRUTH, example_laws, example_records, fitted_laws
from places import SHARED
from scipy import stats

from isoflop.cli import main as cli
from isoflop.errors import FitError, PlanError
from isoflop.recipe import write_json
from isoflop.scaling.fit.joint import fit
from isoflop.scaling.fit.selection import load_table
from isoflop.scaling.plan import compare as comparison
from isoflop.scaling.plan.compare import compare_files
from isoflop.scaling.plan.paired import cells_by_setting, paired_differences
from isoflop.scaling.published import load_laws
from isoflop.scaling.sweep.records import append_record, read_records

BASE = example_laws(seed=1)
MARIN = SHARED / "scaling" / "marin-isoflop" / "runs.csv"


HELD_OUT = {"held_out_sha256": "e" * 64, "held_out_bytes": 178_000}
OTHER_TEXT = {"held_out_sha256": "d" * 64, "held_out_bytes": 178_000}


def compare(a, b, **options):
    """The JSON of a comparison of two laws files."""
    return comparison.compare(load_laws(a), load_laws(b), **options).tree()


def test_a_change_worth_twice_the_compute_is_found():
    found = compare(BASE, example_laws(seed=2, data_gain=2.0), budget_flops=1e15)
    assert found["multiplier"]["center"] == pytest.approx(2.0, rel=0.02)
    assert found["multiplier"]["low"] < 2.0 < found["multiplier"]["high"]
    assert found["decided"] and found["multiplier"]["low"] > 1
    assert "B is worth 2 x the compute of A" in found["verdict"]
    assert found["needed"] == pytest.approx(0.5, rel=0.02)
    assert found["loss"]["b"] < found["loss"]["a"] and found["next_cells"] == []


def test_swapping_the_fits_inverts_the_multiplier():
    better = example_laws(seed=2, data_gain=2.0)
    forward, back = compare(BASE, better, budget_flops=1e15), compare(better, BASE, budget_flops=1e15)
    assert forward["multiplier"]["center"] * back["multiplier"]["center"] == pytest.approx(1.0, rel=0.03)


def test_equal_fits_cannot_be_told_apart_and_the_cells_to_run_are_named():
    found = compare(BASE, example_laws(seed=2), budget_flops=1e15)
    assert not found["decided"] and "can't tell yet" in found["verdict"]
    cells = found["next_cells"]
    assert 1 <= len(cells) <= 4
    left = [cell["interval_width_left"] for cell in cells]
    assert left == sorted(left, reverse=True) and left[-1] < 0.95
    for cell in cells:
        assert cell["flops_per_token"] * cell["n_tokens"] == pytest.approx(cell["budget_flops"])
        assert cell["budget_flops"] <= 3.01 * max(BASE["budgets"])
    assert {cell["side"] for cell in cells} == {"a", "b"}
    assert all(row["p"] > 0.01 for row in found["exponents"])


def test_different_exponents_are_detected():
    steeper = np.array(TRUTH)
    steeper[3:] *= 1.15
    steeper[1:3] *= [3.0, 3.0]
    found = compare(BASE, example_laws(steeper, seed=2), budget_flops=1e15)
    rows = {row["law"] + row["exponent"]: row for row in found["exponents"]}
    alpha = rows["surface_log_huberloss against scale (alpha)"]
    assert alpha["p"] < 0.05 and alpha["difference"] == pytest.approx(0.15 * TRUTH[3], rel=0.1)
    assert "the multiplier changes with scale" in found["verdict"]


def test_a_loss_that_the_base_never_reaches_is_reported_as_a_limit():
    lower = np.array(TRUTH)
    lower[0] -= 0.65
    found = compare(BASE, example_laws(lower, seed=2), budget_flops=1e15)
    assert found["decided"] and found["multiplier"]["at_limit"] > 0.9
    assert "over 10000 x" in found["verdict"]
    assert any("never reaches" in text for text in found["warnings"])


def test_other_conventions_are_warned_about_but_not_another_family():
    changed = {"tokenizer_sha256": "0" * 64, "eval_set": "other", "schedule": "cosine", "family": "64 experts"}
    other = {**BASE, "conventions": {**BASE["conventions"], **changed}}
    warnings = compare(BASE, other, budget_flops=1e15)["warnings"]
    for name in ("tokenizer_sha256", "eval_set", "schedule"):
        assert any(f"conventions.{name} differs" in text for text in warnings)
    assert not any("family" in text for text in warnings)
    assert not any("nats per token" in text for text in warnings)  # bits per byte can be compared


def test_laws_on_another_held_out_text_are_refused_in_both_directions_and_both_are_named(tmp_path):
    """The same loss law read off a text that is easier by 10%: without the hash it would be worth several times."""
    easier = {**example_laws(TRUTH * np.array([0.9, 0.9, 0.9, 1, 1]), seed=2), **OTHER_TEXT}
    write_json(tmp_path / "a.json", BASE)
    write_json(tmp_path / "b.json", easier)
    for first, second in (("a", "b"), ("b", "a")):
        for vouched in (False, True):  # what the laws say themselves cannot be vouched away
            with pytest.raises(PlanError) as refused:
                compare_files(tmp_path / f"{first}.json", tmp_path / f"{second}.json", same_held_out=vouched)
            text = str(refused.value)
            assert f"A ({tmp_path / first}.json)" in text and f"B ({tmp_path / second}.json)" in text
            assert "e" * 12 in text and "d" * 12 in text and "178,000 bytes" in text
    same = compare(BASE, {**easier, **HELD_OUT}, budget_flops=1e15)
    assert same["multiplier"]["low"] > 2 and not same["held_out"]["stated"]  # what the hash prevents


def test_another_part_of_the_same_held_out_text_is_refused():
    with pytest.raises(PlanError, match=r"178,000 bytes\) and B .* \(90,000 bytes"):
        compare(BASE, {**BASE, "held_out_bytes": 90_000}, budget_flops=1e15)


@pytest.mark.parametrize("missing", ["held_out_sha256", "held_out_bytes"])
def test_laws_that_do_not_say_their_held_out_text_are_compared_on_ones_word_and_the_answer_repeats_it(missing):
    old = {key: value for key, value in example_laws(seed=2).items() if key != missing}
    for pair in ((BASE, old), (old, BASE), (old, old)):
        with pytest.raises(PlanError, match=r"held_out_sha256 and held_out_bytes.*add --same-held-out"):
            compare(*pair, budget_flops=1e15)
        found = compare(*pair, budget_flops=1e15, same_held_out=True)
        assert found["held_out"]["stated"] and "your word (--same-held-out)" in found["verdict"]
    assert "--same-held-out" not in compare(BASE, BASE, budget_flops=1e15, same_held_out=True)["verdict"]


def test_nats_per_token_of_two_tokenizers_are_two_units():
    nats = {**BASE, "loss": "loss_nats"}
    other = {**nats, "conventions": {**BASE["conventions"], "tokenizer_sha256": "0" * 64}}
    with pytest.raises(PlanError, match=r"nats per token of two tokenizers .* fit bits_per_byte"):
        compare(nats, other, budget_flops=1e15)
    assert compare(nats, nats, budget_flops=1e15)["multiplier"]["center"] == pytest.approx(1.0)


def test_laws_carry_the_held_out_text_of_their_records_where_all_agree(tmp_path):
    records = sweep_records("dense; MHA", 1.0, seed=1)
    for told, warned in (([HELD_OUT], 0), ([HELD_OUT, OTHER_TEXT], 1), ([HELD_OUT, {}], 2), ([{}], 0)):
        runs = [dataclasses.replace(record, **told[n % len(told)]) for n, record in enumerate(records)]
        laws = fit(runs, bootstrap=0)
        laws.write(tmp_path / "laws.json")
        again = load_laws(tmp_path / "laws.json")
        assert again.held_out_sha256 == laws.held_out_sha256 == (told[0].get("held_out_sha256", "") * (warned == 0))
        assert again.held_out_bytes == laws.held_out_bytes
        assert sum("held_out" in text for text in laws.warnings) == warned


def paired_records(folder, name, factor, told, seeds=(0, 1), noise=0.0):
    """Records of a sweep whose losses are `factor` times those of the base, and what they say of the held-out text."""
    generator = np.random.default_rng(len(name))
    path = folder / f"{name}.jsonl"
    for number, record in enumerate(sweep_records("dense; MHA", 1.0, seed=1)):
        for seed in seeds:
            loss = float(record.bits_per_byte or 0.0) * factor * (1 + noise * generator.standard_normal())
            change = {"d_model": 64 + number % 5, "n_layers": 2, "seed": seed, "bits_per_byte": loss, **told}
            by_domain = {"en": loss * 0.9, "zh": loss * 1.2}
            run_id = f"{record.run_id}-{seed}"
            append_record(path, dataclasses.replace(record, run_id=run_id, bits_per_byte_by_domain=by_domain, **change))
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Laws files and records of two sweeps over equal cells; every loss of the second is 1% lower."""
    folder = tmp_path_factory.mktemp("pair")
    records = tuple(paired_records(folder, *of, HELD_OUT) for of in (("a", 1.0), ("bb", 0.99)))
    for path in records:
        fit(read_records(path), bootstrap=200).write(path.with_suffix(".json"))
    return tuple(path.with_suffix(".json") for path in records), records


def test_equal_cells_state_their_mean_difference_in_loss_and_in_compute(pair):
    laws, records = pair
    found = compare_files(*laws, records=records)
    by_group = {row.group: row for row in found.paired}
    assert list(by_group) == ["all", *(f"{c:.3g} FLOPs" for c in (1e13, 3e13, 1e14, 3e14, 9e14)), "en", "zh"]
    for row in found.paired:
        assert row.mean == pytest.approx(np.log(0.99)) and row.low == pytest.approx(row.high)
    assert (by_group["all"].n_cells, by_group["all"].witnesses) == (50, 10)
    worth = by_group["9e+14 FLOPs"].multiplier
    assert worth is not None and worth[0] == pytest.approx(found.multiplier.center, rel=0.1) and worth[0] > 1
    assert "Of 50 equal cells (10 shapes and seeds) B's loss differs by -1.01%" in found.verdict


def test_the_command_shows_what_was_compared_and_draws_the_runs_that_it_is_given(pair, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install isoflop[report]")
    laws, records = pair
    command = ["compare", *map(str, laws), "--figure", str(tmp_path / "c.png")]
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "--figure has no effect without --records" in capsys.readouterr().err
    cli.main([*command, "--records", *map(str, records), "--json", str(tmp_path / "c.json")])
    shown = capsys.readouterr().out
    assert re.search(r"held-out text +the same, eeeeeeeeeeee, 178,000 bytes", shown)
    assert re.search(r"equal cells, 9e\+14 FLOPs +-1.01% \(-1.01% to -1.01%\), worth 1\.", shown)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["paired"]) == 8


def test_the_interval_of_equal_cells_is_students_over_witnesses(tmp_path):
    records = [paired_records(tmp_path, *of, HELD_OUT, noise=0.01) for of in (("a", 1.0), ("bb", 1.0))]
    fit(read_records(records[0]), bootstrap=200).write(tmp_path / "a.json")
    cells = [cells_by_setting(path, "bits_per_byte") for path in records]
    row = paired_differences(cells[0], cells[1], load_laws(tmp_path / "a.json"), 0.9)[0]
    ratios = [np.log(cells[1][key].bits_per_byte / cells[0][key].bits_per_byte) for key in cells[0]]
    means = np.array(ratios).reshape(5, 5, 2).mean(axis=0).ravel()  # budgets share shape and seed
    expected = stats.t.interval(0.9, 9, means.mean(), stats.sem(means))
    assert (row.low, row.high) == pytest.approx(expected)


def test_equal_cells_need_one_run_per_cell_of_the_same_text_on_both_sides(tmp_path):
    write_json(tmp_path / "a.json", BASE)
    base = paired_records(tmp_path, "base", 1.0, HELD_OUT)

    def refused(other, message):
        with pytest.raises(PlanError, match=message):
            compare_files(tmp_path / "a.json", tmp_path / "a.json", records=(base, other))

    refused(
        paired_records(tmp_path, "text", 1.0, OTHER_TEXT), "different held-out text .* records .*text.jsonl on dddd"
    )
    refused(paired_records(tmp_path, "silent", 1.0, {}), "are not in records .*silent.jsonl")
    refused(paired_records(tmp_path, "twice", 1.0, HELD_OUT, seeds=(1, 1.0)), "two finished cells of d_model")
    far = paired_records(tmp_path, "far", 1.0, HELD_OUT, seeds=(7,))
    found = compare_files(tmp_path / "a.json", tmp_path / "a.json", records=(base, far))
    assert not found.paired and any("no finished cell in common" in text for text in found.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "loss_nats"}, r"loss = 'bits_per_byte' of A \(laws\) and 'loss_nats' of B"),
        ({"scale": "n_params"}, "scale = .* of A"),
        ({"resamples": {}}, "no interval is available"),
    ],
)
def test_laws_that_measure_differently_are_refused(change, message):
    with pytest.raises(PlanError, match=message):
        compare(BASE, {**BASE, **change}, budget_flops=1e15)


def test_a_budget_must_be_positive():
    with pytest.raises(PlanError, match="budget_flops = 0"):
        compare(BASE, BASE, budget_flops=0)


def test_two_files_are_compared_at_the_largest_budget_of_both(tmp_path):
    write_json(tmp_path / "a.json", BASE)
    write_json(tmp_path / "b.json", example_laws(seed=2, budgets=(1e13, 1e14, 1e15)))
    found = compare_files(tmp_path / "a.json", tmp_path / "b.json").tree()
    assert found["budget_flops"] == 1e15 and found["multiplier"]["center"] == pytest.approx(1.0, rel=0.05)


def test_a_published_law_has_nothing_to_compare_with(tmp_path):
    write_json(tmp_path / "a.json", {**BASE, "loss": "loss_nats"})
    with pytest.raises(PlanError, match="no interval is available"):
        compare_files(tmp_path / "a.json", "deepseek")


@pytest.mark.skipif(not MARIN.is_file(), reason="needs shared/data/scaling/marin-isoflop beside the checkout")
def test_two_corpora_of_marin_differ_in_level_and_not_measurably_in_exponents():
    """What the data's README found by independent fits: exponents within their intervals, loss levels apart."""
    mapping = "n_params=params,n_tokens=tokens,total_flops=flops_logged,loss_nats=loss"
    comma, nemotron = (
        fitted_laws(load_table(MARIN, mapping=mapping, where=[f"dataset={name}", "kind=isoflop"]))
        for name in ("comma", "nemotron")
    )
    with pytest.raises(PlanError, match="held_out_sha256"):
        compare(comma, nemotron, budget_flops=1e19)
    found = compare(
        comma, nemotron, budget_flops=1e19, same_held_out=True
    )  # one validation loss for all of its corpora
    assert found["decided"] and 2.0 < found["multiplier"]["low"] < found["multiplier"]["high"] < 4.0
    assert all(row["p"] > 0.05 for row in found["exponents"])
    far = compare(comma, nemotron, budget_flops=1e22, same_held_out=True)
    assert far["multiplier"]["high"] / far["multiplier"]["low"] > 10 and far["next_cells"]
    assert any("times the largest run" in text for text in far["warnings"])


DENSE_TRUTH = np.array([0.9, 40.0, 60.0, 0.30, 0.33])


def sweep_records(family, leverage, seed, **held_out):
    """Cells of a sweep whose family is worth `leverage` times the compute of the dense one, in active FLOPs."""
    experts = {"n_experts": 64, "n_active": 6, "n_shared": 2, "d_expert": 88} if "experts" in family else {}
    budgets, spreads = (1e13, 3e13, 1e14, 3e14, 9e14), (0.35, 0.6, 1.0, 1.7, 2.9)
    fields = {"conventions": {"flops": "M D", "family": family}, **experts, **held_out}
    return example_records(DENSE_TRUTH, budgets, spreads, noise=0.002, seed=seed, worth=leverage, **fields)


def test_a_mixture_worth_known_compute_over_a_dense_sweep_is_found_and_both_families_are_named():
    dense = fit(sweep_records("dense; MHA", 1.0, seed=1, **HELD_OUT), bootstrap=200)
    found, inside = [], []
    for seed in range(2, 6):
        mixture = fit(sweep_records("64 experts, 6 active; MHA", 2.5, seed=seed, **HELD_OUT), bootstrap=200)
        result = compare(dense, mixture, budget_flops=9e14)
        found.append(result["multiplier"]["center"])
        inside.append(result["multiplier"]["low"] < 2.5 < result["multiplier"]["high"])
        assert result["decided"] and result["families"]["b"].startswith("64 experts")
        assert "B (64 experts, 6 active; MHA) is worth" in result["verdict"] and "A (dense; MHA)" in result["verdict"]
        assert not any("family" in text for text in result["warnings"])
    assert sum(inside) >= 3 and np.exp(np.mean(np.log(found))) == pytest.approx(2.5, rel=0.15)


def test_laws_are_not_fitted_to_a_mixture_and_dense_runs_together():
    records = sweep_records("dense; MHA", 1.0, seed=1) + sweep_records("64 experts; MHA", 2.5, seed=2)
    with pytest.raises(FitError, match=r"2 families of models: dense \(25\), 64 experts, 6 active, 2 shared \(25\)"):
        fit(records, bootstrap=0)


def test_sweeps_whose_optima_lie_outside_are_compared_but_place_no_cells():
    outside = copy.deepcopy(BASE)
    for vertex in outside["parabola"]["vertices"]:
        vertex["inside"] = False
    found = compare(outside, example_laws(seed=2), budget_flops=1e15)
    assert found["next_cells"] == [] and "can't tell yet" in found["verdict"]
    assert any("no further cells were placed: the vertex" in text for text in found["warnings"])
