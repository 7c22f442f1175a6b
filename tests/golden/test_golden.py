"""Numbers, laws and unfinished folders of an earlier version: recomputed to the last bit, read, gone on with.

On a machine like that of the goldens (data/machine.json; data/machine_laws.json for laws and what follows from them:
versions of torch, numpy and scipy, vendor and vector units of the processor) every number must be equal. On another one
losses may differ by 2e-3 of their value, parameters of laws by 1e-2, correlations of images by 2e-2
(golden_numbers.LOOSE), and the rest only has to be there. Time, speed, commit, host and format number are left out
(golden_numbers.EXCEPTED), nor are sentences for people. `make.py` makes the goldens; a change of numbers on purpose
makes them again and says why.
"""

import json
import shutil
from pathlib import Path

import golden_runs as runs
import pytest
from golden_numbers import EXCEPTED, differences, fingerprint, without_excepted
from in_situ_run import in_situ

DATA = runs.HERE / "data"
EXACT, EXACT_LAWS = (fingerprint() == runs.read_json(DATA / f"{name}.json") for name in ("machine", "machine_laws"))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with recipes, text, pictures, and what the goldens' machine left: tokens, a finished run, laws."""
    folder = tmp_path_factory.mktemp("golden")
    runs.write_inputs(folder)
    for name in ("tokens", "base"):
        shutil.copytree(DATA / "folders" / name, folder / name)
    shutil.copytree(DATA / "laws", folder / "laws")
    return folder


@pytest.fixture(autouse=True)
def _working_there(workplace):
    with runs.working_in(workplace):
        yield


def must_equal(name: str, found, exact=EXACT) -> None:
    """Compare with a golden and name every difference (the first twenty)."""
    lines = differences(runs.read_json(DATA / f"numbers/{name}.json"), found, exact=exact)
    assert not lines, "\n".join([f"{len(lines)} differences from {name}", *lines[:20]])


def unfinished(name: str) -> str:
    """A copy of an old unfinished folder, in another place than it was made in."""
    shutil.rmtree(f"old/{name}", ignore_errors=True)
    shutil.copytree(DATA / "folders" / name, f"old/{name}")
    return f"old/{name}"


@pytest.mark.parametrize("name", ["machine", "machine_laws"])
def test_this_machine_is_that_of_the_goldens(name):
    goldens = runs.read_json(DATA / f"{name}.json")
    if fingerprint() != goldens:
        pytest.skip(f"compared within tolerances: goldens are of {goldens}")


def test_text_becomes_the_same_corpus_and_tokens(tmp_path):
    with runs.working_in(tmp_path):
        runs.write_inputs(tmp_path)
        must_equal("tokens", runs.text_to_tokens())


@pytest.mark.parametrize("name", runs.PRETRAIN)
def test_training_computes_what_it_did(name):
    must_equal(name, runs.pretrain(name, name))


def test_extending_an_old_run_computes_what_it_did():
    must_equal("extended", runs.extend("extended"))


def test_imaging_computes_what_it_did():
    must_equal("imaging", runs.imaging("imaging"))


def test_a_study_of_imaging_computes_what_it_did():
    must_equal("imaging_sweep", runs.imaging_sweep("imaging_sweep"))


def test_training_in_situ_computes_what_it_did():
    found = in_situ(Path("in_situ"))
    must_equal("in_situ", {**found, "metrics": runs.read_lines(Path("in_situ/metrics.jsonl"))})


def test_trunk_and_branches_compute_what_they_did():
    must_equal("grid", runs.sweep("grid", *runs.GRID))


@pytest.mark.slow
def test_a_sweep_and_its_laws_are_what_they_were():
    must_equal("sweep", runs.sweep("sweep"))
    laws = runs.fitted(Path("sweep/records.jsonl"), 20, "sweep_laws.json")
    must_equal("sweep_laws", laws, exact=EXACT_LAWS)


@pytest.mark.parametrize("study", runs.STUDIES)
def test_laws_of_a_study_are_what_they_were(study):
    old = runs.read_json(DATA / runs.laws_file(study))
    lines = differences(old, runs.laws_of(study, "again.json"), exact=EXACT_LAWS)
    assert not lines, "\n".join(lines[:20])


@pytest.mark.parametrize("law", runs.SINGLE_LAWS)
def test_a_law_on_its_own_is_what_it_was(law):
    golden = runs.read_json(DATA / "numbers/single_laws.json")[law]
    lines = differences(golden, runs.single_law(law), exact=EXACT_LAWS)
    assert not lines, "\n".join(lines[:20])


def test_old_laws_plan_and_compare_as_they_did():
    must_equal("plans", runs.plans("laws"), exact=EXACT_LAWS)


def test_a_plan_from_old_laws_trains_and_is_scored_as_it_was():
    must_equal("planned", runs.plan_and_score("laws/demo-seed0-9c5d3f0.json"), exact=EXACT_LAWS)


@pytest.mark.parametrize("name", ["dense", "deep"])
def test_an_old_unfinished_run_goes_on_to_the_golden_end(name):
    out = unfinished(name)
    assert not Path(out, "result.json").exists() and list(Path(out, "checkpoints").glob("step_0000001*"))
    must_equal(name, runs.pretrain(name, out))


def test_an_old_unfinished_extension_goes_on_to_the_golden_end():
    must_equal("extended", runs.extend(unfinished("extended")))


def test_an_old_unfinished_imaging_run_goes_on_to_the_golden_end():
    out = unfinished("imaging")
    assert not Path(out, "result.json").exists() and list(Path(out, "checkpoints").glob("step_*"))
    must_equal("imaging", runs.imaging(out))


def test_an_old_unfinished_training_in_situ_goes_on_to_the_golden_end():
    out = Path(unfinished("in_situ"))
    assert 0 < len(runs.read_lines(out / "metrics.jsonl")) < 40
    found = in_situ(out)
    must_equal("in_situ", {**found, "metrics": runs.read_lines(out / "metrics.jsonl")})


def test_an_old_unfinished_branch_goes_on_alone_to_the_golden_end():
    branch = next(Path(unfinished("grid"), "cells").iterdir())
    runs.isoflop("train", branch / "recipe.toml", "--out", branch)
    golden = runs.read_json(DATA / "numbers/grid.json")
    found = runs.run_numbers(branch)
    lines = differences(golden["metrics"][f"cells/{branch.name}"], found["metrics"], exact=EXACT)
    assert not lines, "\n".join(lines[:20])
    loss = golden["records"][branch.name]["loss_nats"]
    assert found["result"]["loss_nats"] == (loss if EXACT else pytest.approx(loss, rel=2e-3))
    assert found["result"]["start_step"] == found["metrics"][0]["step"] - 1 > 0


def test_an_old_unfinished_sweep_goes_on_to_the_golden_end():
    out = unfinished("grid")
    assert not Path(out, "records.jsonl").exists() and len(list(Path(out, "cells").iterdir())) == 1
    must_equal("grid", runs.sweep(out, *runs.GRID))


@pytest.mark.parametrize("study", ["h100", "experts", "numerics/photonic-4bit"])
def test_old_records_and_laws_are_reported(study):
    folder = Path("studies", study)
    shutil.copytree(runs.ROOT / "docs/studies" / study, folder)
    shutil.copy(DATA / runs.laws_file(study), folder / "laws.json")
    runs.isoflop("report", folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    names = {record["run_id"] for record in runs.read_lines(folder / "records.jsonl")}
    assert page.count("<svg") >= 2 and any(name in page for name in names)


def test_an_old_finished_run_is_reported_and_not_run_again():
    runs.isoflop("report", "base")
    assert "<svg" in Path("base/report.html").read_text(encoding="utf-8")
    before = Path("base/result.json").read_bytes()
    assert runs.pretrain("dense", "base")["result"] == json.loads(before)
    assert Path("base/result.json").read_bytes() == before


def test_one_bit_and_one_lost_field_are_differences_and_excepted_fields_are_none():
    golden = {"loss_nats": 0.1, "rows": [{"step": 1}], "name": "a"}
    assert not differences(golden, {**golden, "wall_s": 3.0, "more": 1}, exact=True)
    assert differences(golden, {**golden, "loss_nats": 0.1 + 2**-56}, exact=True) == [
        ".loss_nats = 0.10000000000000002, the golden says 0.1"
    ]
    assert not differences(golden, {**golden, "loss_nats": 0.1001, "name": "b"}, exact=False)
    assert differences(golden, {**golden, "loss_nats": 0.101}, exact=False)
    for exact in (True, False):
        assert differences(golden, {"loss_nats": 0.1, "rows": []}, exact=exact) == [
            ".rows has 0 entries, the golden 1",
            ".name is missing",
        ]
    assert without_excepted(dict.fromkeys(EXCEPTED, 1)) == {}
