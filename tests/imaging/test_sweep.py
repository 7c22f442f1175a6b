"""Sweeps, their records, figures and page; and the commands on top of them."""

import json
import shutil

import pytest

from isoflop.cli.main import main
from isoflop.errors import DataError, RecipeError
from isoflop.imaging.report import sort_records, write_report
from isoflop.imaging.sweep import ImagingSweep, cells, read_records, run_sweep
from isoflop.recipe import from_tree, write_recipe

TREE = {
    "sweep": {"study": "tiny", "crops_px": [20, 10], "photons": [2.0], "networks": ["ridge"], "twin_max_px": 150},
    "medium": {"object_px": 14, "frame_px": 20},
    "objects": {"n_train": 200, "n_test": 12, "n_unseen": 12},
    "network": {"width": 32, "depth": 1, "channels": 4, "refinements": 1},
    "twin": {"iterations": 20, "restarts": 1, "least_share": 0.03},
    "train": {"n_samples": 320, "batch_samples": 32, "warmup_steps": 2, "threads": 1},
}
SWEEP = from_tree(TREE, ImagingSweep)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, run_sweep(SWEEP, folder)


def test_cells_vary_one_thing_and_large_frames_go_without_a_twin():
    found = cells(SWEEP)
    assert list(found) == ["crop20", "crop10", "crop20-photons2", "crop20-ridge", "crop10-shuffled"]
    assert found["crop20"].twin.iterations == 0 == found["crop20"].network.width
    assert found["crop10"].twin.iterations == 20 and found["crop10"].network.width == 32
    assert found["crop20-photons2"].camera.photons == 2.0
    assert found["crop10-shuffled"].train.shuffled


def test_a_sweep_leaves_one_record_per_cell_and_runs_nothing_twice(study):
    folder, records = study
    before = (folder / "records.jsonl").read_bytes()
    assert [r["run_id"] for r in records] == list(cells(SWEEP))
    assert run_sweep(SWEEP, folder) == json.loads(json.dumps(records))
    assert (folder / "records.jsonl").read_bytes() == before
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"run_id": "torn')
    assert len(read_records(folder / "records.jsonl")) == 5
    (folder / "records.jsonl").write_bytes(before)


def test_a_record_after_a_torn_line_is_not_lost_and_a_damaged_line_is_named(study, tmp_path):
    lines = (study[0] / "records.jsonl").read_bytes().splitlines(keepends=True)
    shutil.copytree(study[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # killed within the last record
    assert len(run_sweep(SWEEP, tmp_path)) == 5
    assert path.read_bytes() == b"".join(lines)
    path.write_bytes(lines[0] + b'{"run_id": \n' + lines[1])
    with pytest.raises(DataError, match="line 2 is not JSON"):
        read_records(path)


def test_records_of_something_else_are_not_added_to(tmp_path):
    record = json.dumps({"run_id": "b1e12", "bits_per_byte": 1.9}) + "\n"
    (tmp_path / "records.jsonl").write_text(record, encoding="utf-8")
    for use in (lambda: run_sweep(SWEEP, tmp_path), lambda: write_report(tmp_path)):
        with pytest.raises(DataError, match=r"records\.jsonl has a record without identity, none of imaging"):
            use()
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_records_are_sorted_into_what_the_page_shows(study):
    by_crop, by_photons, rest = sort_records(study[1])
    assert [r["camera_px"] for r in by_crop] == [400, 100]
    assert [r["photons"] for r in by_photons] == [0.0, 2.0]
    assert {r["run_id"] for r in rest} == {"crop20-ridge", "crop10-shuffled"}


def test_the_page_is_self_contained_and_shows_pictures_controls_and_origin(study):
    folder, _ = study
    text = write_report(folder).read_text(encoding="utf-8")
    assert "<script" not in text and "http://" not in text.replace("http://www.w3.org", "")
    for part in ("Speckle, reconstruction, truth", "another slab, 400 pixels", "shuffled pairs", "pairs kept aside"):
        assert part in text
    assert text.count("<svg") == 5
    assert {path.name for path in (folder / "figures").glob("*.png")} == {
        f"{name}.png" for name in ("gallery", "crops", "crop_curve", "photon_curve", "histogram")
    }
    assert write_report(folder).read_text(encoding="utf-8") == text


def test_names_from_outside_stay_text(study, tmp_path):
    shutil.copytree(study[0], tmp_path / "evil")
    records = (tmp_path / "evil/records.jsonl").read_text(encoding="utf-8")
    evil = "<script>alert(1)</script>"
    (tmp_path / "evil/records.jsonl").write_text(records.replace('"tiny"', f'"{evil}"'), encoding="utf-8")
    text = write_report(tmp_path / "evil", title=evil).read_text(encoding="utf-8")
    assert "<script" not in text and text.count("&lt;script&gt;") >= 3


def test_a_folder_without_runs_has_no_page(tmp_path):
    with pytest.raises(DataError, match=r"has no records\.jsonl"):
        write_report(tmp_path)


def test_crops_beyond_the_frame_are_refused():
    with pytest.raises(RecipeError, match=r"sweep\.crops_px = \[40\] must be in 1 to medium\.frame_px = 20"):
        cells(from_tree({**TREE, "sweep": {"crops_px": [40]}}, ImagingSweep))


def test_commands_train_ask_and_report(tmp_path, study, capsys):
    recipe = tmp_path / "run.toml"
    write_recipe(recipe, cells(SWEEP)["crop10"])
    words = (recipe, "twin.iterations=0", "--out", tmp_path / "run", "--json", tmp_path / "j")
    main(["imaging", "train", *map(str, words)])
    assert json.loads((tmp_path / "j").read_text())["status"] == "finished"
    main(["imaging", "evaluate", str(tmp_path / "run"), "camera.photons=5"])
    assert "mean image" in capsys.readouterr().out
    main(["imaging", "report", str(study[0])])
    assert "report.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["camera.bits=40"], "camera.bits = 40 must be 1 to 16"),
        (["medium.kid=tm"], "unknown key medium.kid; did you mean medium.kind?"),
        (["--ot", "x"], "--ot is not an option of isoflop imaging train; did you mean --out?"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_two(arguments, message, tmp_path, refused):
    recipe = tmp_path / "run.toml"
    write_recipe(recipe, cells(SWEEP)["crop10"])
    assert message in refused("imaging", "train", recipe, *arguments, "--out", tmp_path / "run")


def test_the_demo_preset_has_the_cells_of_the_page():
    from importlib import resources

    from isoflop.recipe import load_recipe

    with resources.as_file(resources.files("isoflop") / "presets" / "imaging_demo.toml") as path:
        found = cells(load_recipe(path, ImagingSweep))
    assert {"crop64", "crop32", "crop16", "crop8", "crop64-photons1", "crop8-shuffled"} <= set(found)


@pytest.mark.slow
def test_the_demo_ends_in_a_page(tmp_path):
    main(["imaging", "demo", "--out", str(tmp_path), "--minutes", "0.25"])
    assert (tmp_path / "report.html").stat().st_size > 100_000
