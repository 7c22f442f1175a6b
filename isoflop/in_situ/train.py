"""Training in situ: images in, a network out whose every product ran in the number format it will be used in.

The workloads (classify, reconstruct) run through the one training loop. What the core spoils, training sees: noise,
quantisation and clipping are in every forward pass, and by choice in the backward passes (numerics/photonic.py).
Source: optics.md A12.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.errors import RecipeError
from isoflop.in_situ.images import Images
from isoflop.in_situ.perceptron import Perceptron
from isoflop.numerics.assign import assign
from isoflop.numerics.noise import VALIDATION, NoiseKey
from isoflop.numerics.section import NumericsSection, refuse_until
from isoflop.training.checkpoint import Saving
from isoflop.training.loop import StepPlan
from isoflop.training.optim import adamw
from isoflop.training.run import Built, Job, run
from isoflop.training.saturation import watch_clipping
from isoflop.training.step_hooks import NoiseHook
from isoflop.training.workload import Workload


@dataclass(frozen=True)
class TrainOptions:
    """How long and how fast; the same for every number format that is compared."""

    n_epochs: int = 10
    batch: int = 100
    """Images of an optimizer step."""
    learning_rate: float = 2e-3
    """At the start."""
    constant: bool = False
    """Keep the rate; else it falls to 0 as half a cosine."""
    seed: int = 0
    """Of the weights, the order of the images and the noise."""


class Classify(Workload):
    """Cross-entropy of labelled images."""

    def __init__(self, images: Images, test: Images, options: TrainOptions):
        self.images, self.test, self.options = images, test, options
        self.tokens_per_step = options.batch

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[tuple[Tensor, ...]]:
        rows = batch_rows(len(self.images), step, self.options)[rank::world]
        return [(self.images.x[rows], self.images.y[rows])]

    def loss_sum(self, model: nn.Module, micro_batch: tuple[Tensor, ...]) -> Tensor:
        x, y = micro_batch
        return F.cross_entropy(model(x), y, reduction="sum")

    def validate(self, model: nn.Module) -> dict[str, object]:
        return {"accuracy": accuracy(model, self.test)}


class Reconstruct(Classify):
    """Squared error of the images behind a bottleneck; labels are not looked at."""

    def loss_sum(self, model: nn.Module, micro_batch: tuple[Tensor, ...]) -> Tensor:
        x, _ = micro_batch
        return (model(x) - x).square().mean(1).sum()

    def validate(self, model: nn.Module) -> dict[str, object]:
        model.eval()
        with torch.no_grad():
            return {"squared_error": float((model(self.test.x) - self.test.x).square().mean())}


def batch_rows(n: int, step: int, options: TrainOptions) -> Tensor:
    """Rows of a step: each epoch is a permutation of its own, whole batches only."""
    per_epoch = n // options.batch
    epoch, place = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + epoch)
    return torch.randperm(n, generator=generator)[place * options.batch :][: options.batch]


class InSitu(Job):
    """A perceptron trained in its own number formats, as a run."""

    def __init__(self, workload: Classify, model: Perceptron, numerics: NumericsSection | None, *, keep: bool):
        """`keep`: leave a checkpoint at the end."""
        options = workload.options
        self._workload, self._model, self._numerics = workload, model, numerics
        self.key = NoiseKey(options.seed, 0 if numerics is None else numerics.seed)
        n_steps = options.n_epochs * (len(workload.images) // options.batch)

        def rate(step: int) -> float:
            falling = 1.0 if options.constant else 0.5 * (1 + math.cos(math.pi * (step / n_steps)))
            return options.learning_rate * falling

        self.plan = StepPlan(n_steps, rate=rate)
        self.saving = Saving(every_s=0.0, at_end=keep)
        decides = {
            "workload": type(workload).__name__,
            "tensors": _sha256(workload.images.x, workload.images.y, *model.state_dict().values()) if keep else "",
            "options": dataclasses.asdict(options),
            "widths": model.widths,
            "signed": model.signed,
            "numerics": None if numerics is None else _without_until(numerics),
        }
        text = json.dumps(decides, sort_keys=True)
        self.identity = {"seed": options.seed, "identity": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def is_result(self, result: dict[str, Any]) -> bool:
        return False  # the network is what was asked for: it is read from the checkpoint of the last step

    def build(self) -> Built:
        workload, model, options = self._workload, self._model, self._workload.options
        if self._numerics is not None:
            assign(model, self._numerics, self.key)
        workload.hooks = [*watch_clipping(model), NoiseHook(self.key)]
        optimizer = adamw(model, learning_rate=options.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        return Built(workload, model, optimizer)


def train_network(
    workload: Classify,
    widths: tuple[int, ...],
    numerics: NumericsSection | None,
    *,
    signed: bool = False,
    start: Perceptron | None = None,
    run_dir: Path | None = None,
) -> tuple[Perceptron, NoiseKey]:
    """A perceptron of these widths, trained in the given number formats; the noise key stands where validations begin.

    It begins with the weights of `start`, without one with random weights. `run_dir` keeps metrics, result and a last
    checkpoint, and is gone on with where it holds this run; without it nothing is kept.

    Raises:
        RecipeError: fewer images than one batch, a rule that matches no layer, formats that end before the run does.
        CheckpointError: `run_dir` holds another run.
    """
    options, n_images = workload.options, len(workload.images)
    if not 1 <= options.batch <= n_images:
        raise RecipeError(f"batch = {options.batch} must be 1 to the {n_images} images there are")
    model = Perceptron(widths, signed=signed)
    if start is None:
        model.initialise(torch.Generator().manual_seed(options.seed))
    else:
        model.load_state_dict(start.state_dict())
    refuse_until(numerics)
    job = InSitu(workload, model, numerics, keep=run_dir is not None)
    with contextlib.ExitStack() as stack:
        folder = run_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run(job, folder)
    job.key.set(job.plan.n_steps, VALIDATION)
    return model, job.key


def _without_until(numerics: NumericsSection) -> dict[str, Any]:
    """The section as it decides a run, which keeps its formats to the end."""
    return {key: value for key, value in dataclasses.asdict(numerics).items() if key != "until"}


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, rows_at_once: int = 1000) -> float:
    """Share of images whose largest output is their label."""
    was_training = model.training
    model.eval()
    right = 0
    for x, y in zip(images.x.split(rows_at_once), images.y.split(rows_at_once), strict=True):
        right += int((model(x).argmax(1) == y).sum())
    model.train(was_training)
    return right / len(images)


def moved(model: Perceptron, numerics: NumericsSection, seed: int = 0) -> Perceptron:
    """The same weights on other hardware: what a network trained digitally is worth there."""
    there = Perceptron(model.widths, signed=model.signed)
    there.load_state_dict(model.state_dict())
    refuse_until(numerics)
    assign(there, numerics, NoiseKey(seed, numerics.seed))
    return there
