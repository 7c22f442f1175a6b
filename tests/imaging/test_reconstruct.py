"""Runs of seconds: what must hold of any network, camera and medium (the learning half of optics.md B8)."""

import json

import pytest
import torch

from isoflop.errors import CheckpointError, DataError, RecipeError
from isoflop.imaging.config import ImagingRecipe, check
from isoflop.imaging.network import NetworkSection, build_network, initialise
from isoflop.imaging.reconstruct import Reconstruction, evaluate, prepare, run_imaging, untrained
from isoflop.imaging.speckle import Bench, Pairs
from isoflop.recipe import from_tree, to_tree

TINY = from_tree(
    {
        "medium": {"object_px": 14, "frame_px": 24, "seed": 2},
        "camera": {"crop_px": 12},
        "objects": {"n_train": 300, "n_test": 60, "n_unseen": 40},
        "network": {"width": 0, "depth": 1, "channels": 6, "refinements": 1},
        "train": {
            "n_samples": 6400,
            "learning_rate": 5e-3,
            "batch_samples": 64,
            "warmup_steps": 10,
            "precision": "float32",
            "threads": 1,
            "device": "cpu",
        },
    },
    ImagingRecipe,
)


def tiny(**sections) -> ImagingRecipe:
    tree = to_tree(TINY)
    return from_tree({name: {**tree[name], **sections.get(name, {})} for name in tree}, ImagingRecipe)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run_imaging(TINY, folder)


def test_a_trained_network_sees_more_than_ridge_and_ridge_more_than_the_mean_image(trained):
    _, found = trained
    for kind in ("test", "unseen"):
        assert found["scores"][kind]["pcc"] > found["ridge"][kind]["pcc"] > found["mean_image_pcc"][kind]
    assert found["scores"]["test"]["pcc"] > 0.85


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_as_well_as_the_cpu(trained, tmp_path):
    found = run_imaging(tiny(train={"device": "cuda"}), tmp_path)
    for kind in ("test", "unseen"):
        assert found["scores"][kind]["pcc"] == pytest.approx(trained[1]["scores"][kind]["pcc"], abs=0.01)
    assert found["device"] == torch.cuda.get_device_name()
    assert run_imaging(tiny(train={"device": "cuda"}), tmp_path) == found


def test_behind_another_slab_it_knows_no_more_than_the_mean_image(trained):
    _, found = trained
    for kind, pcc in found["other_medium_pcc"].items():
        assert pcc < found["mean_image_pcc"][kind] + 0.02


def test_shuffled_pairs_teach_the_mean_image(tmp_path):
    found = run_imaging(tiny(train={"shuffled": True, "n_samples": 3200}), tmp_path)
    for kind in ("test", "unseen"):
        assert found["scores"][kind]["pcc"] == pytest.approx(found["mean_image_pcc"][kind], abs=0.06)


def test_correlation_rises_with_the_crop_and_with_photons(tmp_path):
    def ridge(**camera) -> float:
        made = tiny(network={"kind": "ridge"}, camera=camera)
        name = "-".join(f"{key}{value}" for key, value in camera.items())
        return run_imaging(made, tmp_path / name)["scores"]["test"]["pcc"]

    by_crop = [ridge(crop_px=crop) for crop in (6, 12, 24)]
    by_photons = [ridge(photons=photons) for photons in (0.2, 2.0, 200.0)]
    assert by_crop == sorted(by_crop) and by_crop[-1] > by_crop[0] + 0.05
    assert by_photons == sorted(by_photons) and by_photons[-1] > by_photons[0] + 0.05
    assert by_photons[-1] == pytest.approx(by_crop[1], abs=0.01)  # 12 pixels again: 200 photons are as good as no noise


def test_a_twin_adds_what_distorted_objects_teach(tmp_path):
    wide = {"network": {"width": 128}, "camera": {"crop_px": 10}, "objects": {"n_train": 400}}
    with_twin = tiny(**wide, twin={"iterations": 80, "restarts": 2, "least_share": 0.03})
    without = tiny(**wide)
    found = [run_imaging(made, tmp_path / name) for name, made in (("twin", with_twin), ("plain", without))]
    assert found[0]["twin_held_out"] > 0.8 and found[1]["twin_held_out"] is None
    assert found[0]["scores"]["unseen"]["pcc"] > found[1]["scores"]["unseen"]["pcc"]


def test_an_interrupted_run_ends_like_an_undisturbed_one(trained, tmp_path):
    folder, found = trained
    calls = iter(range(10_000))
    stopped = run_imaging(TINY, tmp_path, should_stop=lambda: next(calls) == 30)
    assert stopped["status"] == "interrupted" and not (tmp_path / "result.json").exists()
    resumed = run_imaging(TINY, tmp_path)
    assert resumed["scores"] == found["scores"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_a_finished_run_is_not_run_again_and_another_recipe_is_refused(trained):
    folder, found = trained
    assert run_imaging(TINY, folder) == json.loads(json.dumps(found))
    with pytest.raises(CheckpointError, match="holds the result of another recipe; choose another folder"):
        run_imaging(tiny(train={"seed": 5}), folder)


def test_a_run_can_be_asked_about_other_conditions(trained, tmp_path):
    folder, found = trained
    by = {(row["objects"], row["by"]): row["pcc"] for row in evaluate(folder)["scores"]}
    assert by[("test", "hnn")] == pytest.approx(found["scores"]["test"]["pcc"], abs=1e-6)
    assert by[("unseen", "ridge")] == pytest.approx(found["ridge"]["unseen"]["pcc"], abs=1e-6)
    dark = {(row["objects"], row["by"]): row["pcc"] for row in evaluate(folder, ("camera.photons=0.5",))["scores"]}
    assert dark[("test", "mean image")] < dark[("test", "hnn")] < by[("test", "hnn")]
    with pytest.raises(CheckpointError, match="has no checkpoint; run isoflop imaging train"):
        evaluate(tmp_path)
    with pytest.raises(RecipeError, match=r"network.width=3 changes the run, not the conditions"):
        evaluate(folder, ("network.width=3",))


def test_clipped_pixels_are_counted(tmp_path):
    found = run_imaging(tiny(network={"kind": "ridge"}, camera={"bits": 8, "headroom": 3.0}), tmp_path)
    assert 0.02 < found["clipped_share"] < 0.1  # exp(-3) = 0.05 for even exposure


@pytest.mark.parametrize("kind", ["hnn", "unet-dense"])
def test_every_network_learns_from_measured_pairs(kind, tmp_path):
    made = tiny(
        network={"kind": kind, "levels": 2, "growth": 4, "channels": 4, "width": 32},
        train={"n_samples": 1600, "learning_rate": 3e-3, "batch_samples": 32},
    )
    prepared = prepare(made)
    network = untrained(prepared)
    pairs = Pairs(
        prepared.train,
        prepared.ridge.left_out.view_as(prepared.train.images),
        camera=prepared.bench.camera,
        twin=None,
        simulated=0.0,
        wild=0.0,
        batch=32,
        seed=0,
    )
    workload = Reconstruction(made, pairs, prepared.test)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for step in range(40):
        loss = workload.loss_sum(network, *workload.batch(step)) / 32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-8:]) < sum(losses[:8])


def test_a_batch_depends_on_its_step_alone():
    prepared = prepare(TINY)
    make = lambda: Pairs(
        prepared.train, None, camera=prepared.bench.camera, twin=None, simulated=0.0, wild=0.0, batch=8, seed=1
    )
    first, again = make(), make()
    again.batch(0)
    for a, b in zip(first.batch(7), again.batch(7), strict=True):
        assert torch.equal(a, b) or bool((a.isnan() & b.isnan()).all())
    assert not torch.equal(first.batch(7)[0], first.batch(8)[0])


def test_the_linear_layers_of_the_network_are_those_of_the_numerics_room():
    from isoflop.numerics.linear import Linear

    network = build_network(NetworkSection(width=32), 8, 14)
    initialise(network, torch.Generator().manual_seed(0))
    assert sum(isinstance(module, Linear) for module in network.modules()) == 4
    assert all(bool(p.isfinite().all()) for p in network.parameters())


BAD = [
    ({"twin": {"iterations": 5}, "camera": {"binning": 2}}, "twin.iterations needs one coherent field per pixel"),
    ({"twin": {"iterations": 5}, "train": {"shuffled": True}}, "train.shuffled is a control without a twin"),
    ({"twin": {"least_share": 0.0}}, r"twin\.least_share = 0\.0 must be above 0 and below 1"),
    ({"train": {"loss": {"l1": 1.0}}}, r"it does not know 'l1'"),
    ({"train": {"n_samples": 3}}, r"train\.n_samples = 3 must be at least one batch"),
    ({"train": {"learning_rate": 0.0}}, r"train\.learning_rate = 0\.0 must be above 0"),
    ({"network": {"dropout": 1.0}}, r"network\.dropout = 1\.0 must be at least 0 and below 1"),
    ({"network": {"depth": 0}}, r"network\.depth = 0 must be at least 1 and at most 8"),
    ({"camera": {"bits": 30}}, r"camera\.bits = 30 must be 1 to 16"),
    ({"medium": {"object_px": 0}}, r"medium\.object_px = 0 must be in 1 to 512"),
]


@pytest.mark.parametrize(("sections", "message"), BAD)
def test_a_bad_recipe_is_refused_before_anything_is_measured(sections, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        run_imaging(tiny(**sections), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_what_only_shows_on_the_bench_is_refused_there():
    with pytest.raises(RecipeError, match=r"camera\.crop_px = 99 must be at most the frame's 24 pixels"):
        prepare(tiny(camera={"crop_px": 99}))
    with pytest.raises(RecipeError, match=r"network\.levels = 4 needs frames of a multiple of 16 pixels"):
        untrained(prepare(tiny(network={"kind": "unet-dense", "levels": 4})))
    prepared = prepare(TINY)
    bench = Bench(TINY.medium, TINY.camera, prepared.objects)
    with pytest.raises(DataError, match=r"do not fit medium\.object_px = 14"):
        bench.measure(torch.zeros(2, 28, 28), 0)
    with pytest.raises(DataError, match="they must be in 0 to 1; divide 8-bit images by 255"):
        bench.measure(torch.full((2, 14, 14), 255.0), 0)


def test_default_recipe_is_valid():
    check(ImagingRecipe())
