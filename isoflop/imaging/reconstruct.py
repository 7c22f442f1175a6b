"""Seeing through the slab as a workload of the one training loop: a recipe in, checkpoints and `result.json` out.

`run_imaging` measures the objects on the bench, fits the ridge floor, learns a twin of the medium if asked, trains the
network in `isoflop.training.loop`, and scores it beside the ridge, the mean image and two controls: another medium, and
(where `train.shuffled`) pairs that don't belong together. Everything is a pure function of the recipe.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from isoflop.errors import CheckpointError, RecipeError
from isoflop.imaging.config import ImagingRecipe, check
from isoflop.imaging.network import Hybrid, RidgeNetwork, build_network, initialise, reconstruct
from isoflop.imaging.objects import ObjectSet, load_objects
from isoflop.imaging.ridge import Ridge, fit_ridge
from isoflop.imaging.score import loss_sum, mean_image_pcc, scores
from isoflop.imaging.speckle import Bench, Measured, Pairs
from isoflop.imaging.twin import Twin, fit_twin
from isoflop.optics.scattering import seeded
from isoflop.recipe import load_recipe, to_tree
from isoflop.training import checkpoint
from isoflop.training.checkpoint import Saving
from isoflop.training.device import choose_device
from isoflop.training.loop import StepPlan
from isoflop.training.monitor import Progress
from isoflop.training.optim import adamw
from isoflop.training.run import Built, Job, run
from isoflop.training.schedule import factor
from isoflop.training.workload import Workload

log = logging.getLogger(__name__)

OnStage = Callable[[str, float, float], None]
GALLERY = 16
"""Objects of each kind that a run keeps pictures of."""


class Reconstruction(Workload):
    """The weighted losses of reconstructed images."""

    def __init__(self, recipe: ImagingRecipe, pairs: Pairs, test: Measured):
        self.tokens_per_step = recipe.train.batch_samples
        self._pairs, self._test, self._loss = pairs, test, recipe.train.loss
        self._bfloat16 = _bfloat16(recipe.train.precision)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[tuple[Tensor, ...]]:
        return [tuple(tensor[rank::world] for tensor in self._pairs.batch(step))]

    def loss_sum(self, model: nn.Module, micro_batch: tuple[Tensor, ...]) -> Tensor:
        frames_BYX, images_BYX, given_BYX = micro_batch
        with torch.autocast(frames_BYX.device.type, torch.bfloat16, enabled=self._bfloat16):
            logits_BYX = model(frames_BYX, given_BYX)
        return loss_sum(logits_BYX, images_BYX, self._loss)

    def validate(self, model: nn.Module) -> dict[str, object]:
        return dict(score_on(model, self._test)) if len(self._test.images) else {}


def score_on(network: nn.Module, measured: Measured) -> dict[str, float]:
    """Scores of a network on a measured set."""
    device = next(iter(network.state_dict().values())).device
    return scores(reconstruct(network, measured.frames.to(device)).cpu(), measured.images)


@dataclass
class Prepared:
    """What a recipe becomes before anything is trained."""

    recipe: ImagingRecipe
    objects: ObjectSet
    bench: Bench
    train: Measured
    test: Measured
    unseen: Measured
    ridge: Ridge
    twin: Twin | None

    @property
    def frame_px(self) -> int:
        """Side of a frame as the camera gives it."""
        return self.train.raw.shape[-1]


def prepare(recipe: ImagingRecipe, on_stage: OnStage | None = None) -> Prepared:
    """Measure, fit the ridge, learn the twin."""

    def say(stage: str, done: float) -> None:
        if on_stage is not None:
            on_stage(stage, done, 1.0)

    check(recipe)
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    say("objects", 0.0)
    objects = load_objects(recipe.objects, recipe.medium.object_px)
    say("measuring", 0.0)
    bench = Bench(recipe.medium, recipe.camera, objects)
    measured = [bench.measure(images, place) for place, images in enumerate(objects)]
    if recipe.train.shuffled:
        order = torch.randperm(len(objects.train), generator=seeded(recipe.train.seed, 9))
        measured[0] = dataclasses.replace(measured[0], images=measured[0].images[order])
    say("ridge", 0.0)
    pairs = measured[0]
    ridge = fit_ridge(pairs.frames.flatten(1), pairs.images.flatten(1))
    twin = None
    if recipe.twin.iterations and recipe.network.kind != "ridge":
        twin = fit_twin(
            pairs.images.flatten(1),
            pairs.raw.flatten(1) - bench.camera.pedestal,
            seed=recipe.train.seed,
            n_iterations=recipe.twin.iterations,
            n_restarts=recipe.twin.restarts,
            least_share=recipe.twin.least_share,
            n_held_out=min(100, len(pairs.images) // 8),
            on_progress=on_stage,
        )
        log.info("twin of the medium: residual %.3f, held-out frames correlate %.4f", twin.residual, twin.held_out)
    return Prepared(recipe, objects, bench, *measured, ridge=ridge, twin=twin)


def untrained(prepared: Prepared) -> nn.Module:
    """The network of a recipe at step 0, with the ridge solution and the statistics of the frames in its buffers."""
    recipe = prepared.recipe
    network = build_network(recipe.network, prepared.frame_px, recipe.medium.object_px)
    initialise(network, seeded(recipe.train.seed, 10))
    if isinstance(network, (RidgeNetwork, Hybrid)):
        network.linear.take(prepared.ridge)
    if isinstance(network, Hybrid):
        frames = prepared.train.frames
        network.mean.copy_(frames.mean(0))
        network.scale.copy_(frames.std().clamp_min(1e-6).expand_as(network.scale))
    return network


class Imaging(Job):
    """An imaging recipe as a run; the ridge network is solved and not trained by steps."""

    def __init__(self, recipe: ImagingRecipe, run_dir: Path, on_stage: OnStage | None):
        """Raises RecipeError for bad values."""
        check(recipe)
        self.recipe, self._run_dir, self._on_stage = recipe, run_dir, on_stage
        self.identity = {
            "identity": hashlib.sha256(json.dumps(_decides(recipe), sort_keys=True).encode()).hexdigest()[:16]
        }
        t, n_steps = recipe.train, recipe.n_steps()
        relative = functools.partial(
            factor,
            n_steps=n_steps,
            warmup_steps=t.warmup_steps,
            schedule="constant_cooldown",
            cooldown_fraction=t.cooldown_fraction,
        )
        self.plan = StepPlan(
            n_steps, rate=lambda step: t.learning_rate * relative(step), clip_norm=t.clip_norm, graph=False
        )
        self.saving = Saving(every_s=120.0, keep=1)

    def is_result(self, result: dict[str, Any]) -> bool:
        if not super().is_result(result):
            raise CheckpointError(
                f"{self._run_dir} holds the result of another recipe; choose another folder or delete it"
            )
        return True

    def build(self) -> Built:
        recipe, t = self.recipe, self.recipe.train
        prepared = self._prepared = prepare(recipe, self._on_stage)
        network = untrained(prepared)
        if self.plan.n_steps:
            network.to(choose_device(t.device))
        pairs = Pairs(
            prepared.train,
            prepared.ridge.left_out.view_as(prepared.train.images),
            camera=prepared.bench.camera,
            twin=prepared.twin,
            simulated=recipe.twin.simulated,
            wild=recipe.twin.wild,
            batch=t.batch_samples,
            seed=t.seed,
        )
        optimizer = adamw(
            network, learning_rate=t.learning_rate, betas=(0.9, 0.99), eps=1e-8, weight_decay=t.weight_decay
        )
        return Built(Reconstruction(recipe, pairs, prepared.test), network, optimizer)

    def result(self, figures: dict[str, Any], validation: dict[str, object], built: Built) -> dict[str, Any]:
        if figures["status"] != "finished":
            return {"status": figures["status"], "step": figures["step"], **self.identity}
        _write_gallery(self._prepared, built.model, self._run_dir / "gallery.safetensors")
        loss = figures["train_loss_nats"]
        kept = ("wall_s", "device", "torch", "threads", "commit", "started_at", "finished_at")
        return {
            "status": "finished",
            **self.identity,
            **_result(self._prepared, built.model, validation),
            "n_samples": figures["n_tokens"],
            "train_loss": None if math.isnan(loss) else loss,
            **{key: figures[key] for key in kept},
        }


def run_imaging(
    recipe: ImagingRecipe,
    run_dir: Path,
    *,
    on_stage: OnStage | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train as the recipe says and return what `run_dir`/result.json holds; resumes what it finds there.

    Raises:
        RecipeError, DataError: bad values, files or images. CheckpointError: the folder holds another run.
    """
    return run(Imaging(recipe, run_dir, on_stage), run_dir, on_progress=on_progress, should_stop=should_stop)


def evaluate(run_dir: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Scores of a finished run under other conditions: `overrides` of its recipe, for example `camera.photons=1`.

    Raises: CheckpointError where there is no finished run, RecipeError for conditions that its network can't take.
    """
    found = checkpoint.newest(run_dir / "checkpoints")
    if found is None:
        raise CheckpointError(f"{run_dir} has no checkpoint; run isoflop imaging train RECIPE --out {run_dir}")
    for override in overrides:
        if override.partition(".")[0] not in ("medium", "camera", "objects"):
            raise RecipeError(
                f"{override} changes the run, not the conditions it is tried under: medium, camera and objects"
            )
    trained = load_recipe(run_dir / "recipe.toml", ImagingRecipe)
    recipe = load_recipe(run_dir / "recipe.toml", ImagingRecipe, overrides)
    check(recipe)
    objects = load_objects(recipe.objects, recipe.medium.object_px)
    bench = Bench(recipe.medium, recipe.camera, objects)
    sets = {"test": bench.measure(objects.test, 1), "unseen": bench.measure(objects.unseen, 2)}
    frame_px = sets["test"].raw.shape[-1]
    network = build_network(trained.network, frame_px, recipe.medium.object_px)
    checkpoint.load(found, network, None)
    rows = []
    for name, measured in sets.items():
        if not len(measured.images):
            continue
        ways: dict[str, nn.Module] = {trained.network.kind: network}
        if isinstance(network, Hybrid):
            ways["ridge"] = RidgeNetwork(frame_px, recipe.medium.object_px)
            ways["ridge"].linear = network.linear
        for way, module in ways.items():
            rows.append({"objects": name, "by": way, **score_on(module, measured)})
        level = mean_image_pcc(objects.train, measured.images)
        rows.append({"objects": name, "by": "mean image", "pcc": level})
    clipped = sum(m.clipped for m in sets.values()) / max(1, sum(m.raw.numel() for m in sets.values()))
    return {"scores": rows, "clipped_share": clipped, "overrides": list(overrides)}


def _write_gallery(prepared: Prepared, network: nn.Module, path: Path) -> None:
    """The first objects of both kinds with frame, ridge image and the network's: what galleries are drawn from."""
    device = next(iter(network.state_dict().values())).device
    tensors: dict[str, Tensor] = {}
    for name, measured in (("test", prepared.test), ("unseen", prepared.unseen)):
        frames, images = measured.frames[:GALLERY], measured.images[:GALLERY]
        if not len(images):
            continue
        tensors[f"{name}.frame"], tensors[f"{name}.truth"] = frames.contiguous(), images.contiguous()
        tensors[f"{name}.ridge"] = prepared.ridge(frames.flatten(1)).view_as(images).contiguous()
        tensors[f"{name}.network"] = reconstruct(network, frames.to(device)).cpu().contiguous()
    save_file(tensors, path)


def _result(prepared: Prepared, network: nn.Module, of_test: dict[str, object]) -> dict[str, Any]:
    """What an imaging run measures at its end; `of_test` are the scores on the test objects."""
    recipe = prepared.recipe
    other = dataclasses.replace(recipe.medium, seed=recipe.medium.seed + 1_000_003)
    elsewhere = Bench(other, recipe.camera, prepared.objects)
    sets = {"test": prepared.test, "unseen": prepared.unseen}
    ridge = RidgeNetwork(prepared.frame_px, recipe.medium.object_px)
    ridge.linear.take(prepared.ridge)
    named = {name: measured for name, measured in sets.items() if len(measured.images)}
    return {
        "network": recipe.network.kind,
        "camera_px": prepared.frame_px**2,
        "photons": recipe.camera.photons,
        "n_pairs": len(prepared.train.images),
        "n_params": sum(p.numel() for p in network.parameters()),
        "scores": {name: of_test if name == "test" else score_on(network, m) for name, m in named.items()},
        "ridge": {name: score_on(ridge, measured) for name, measured in named.items()},
        "ridge_penalty": prepared.ridge.penalty,
        "mean_image_pcc": {name: mean_image_pcc(prepared.train.images, m.images) for name, m in named.items()},
        "other_medium_pcc": {
            name: score_on(network, elsewhere.measure(measured.images, place))["pcc"]
            for place, (name, measured) in enumerate(named.items(), 1)
        },
        "shuffled": recipe.train.shuffled,
        "clipped_share": sum(m.clipped for m in (prepared.train, *sets.values()))
        / max(1, sum(m.raw.numel() for m in (prepared.train, *sets.values()))),
        "twin_residual": None if prepared.twin is None else prepared.twin.residual,
        "twin_held_out": None if prepared.twin is None else prepared.twin.held_out,
        "precision": "bfloat16" if _bfloat16(recipe.train.precision) else "float32",
    }


def _decides(recipe: ImagingRecipe) -> dict[str, Any]:
    tree = to_tree(recipe)
    for key in ("device", "threads"):
        tree["train"].pop(key, None)
    return tree


def _bfloat16(precision: str) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    return torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
