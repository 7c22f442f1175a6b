"""One run for an amount of compute: whole shape, whole batches, whole steps, the memory and the time they take.

In: laws, a law of batch and rate, a `Machine`. Out: a `Run`; scaling/plan/choose.py wraps it into a recipe with its
prediction. Time in, compute out works by searching for the compute whose run takes that time.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass

from isoflop.errors import IsoflopError, PlanError
from isoflop.model.accounting import Memory, count_parameters, flops_per_token, training_memory
from isoflop.model.config import ModelConfig
from isoflop.model.hardware import HARDWARE, Machine, hardware
from isoflop.recipe import Tree
from isoflop.scaling.laws import Laws
from isoflop.scaling.lr_batch_law import HyperLaw
from isoflop.scaling.plan.allocate import Split, best_split, serving_split
from isoflop.scaling.sweep.family import Family
from isoflop.scaling.sweep.shapes import shape_near

MEMORY_SHARE = 0.92
"""Share of a device's memory that a plan may fill; the rest is fragmentation and temporaries (assumption)."""


@dataclass(frozen=True)
class Run:
    """A shape with whole batches and steps."""

    config: ModelConfig
    split: Split
    scale: float
    batch_tokens: int
    learning_rate: float
    steps: int
    device_seconds: float | None

    @property
    def n_tokens(self) -> int:
        return self.steps * self.batch_tokens


@dataclass(frozen=True)
class Draft:
    """Everything a run depends on except its compute."""

    laws: Laws
    law: HyperLaw
    machine: Machine
    family: Family
    vocab_size: int
    seq_len: int
    unique_tokens: float | None
    max_epochs: float | None
    serve_tokens: float

    def shape(self, scale: float) -> ModelConfig:
        """The whole shape nearest to a model scale, in whichever measure the laws use."""
        target = scale if self.laws.scale == "flops_per_token" else 6 * scale
        config = None
        for _ in range(12):  # parameters are not a function of M alone: move M until they agree
            try:
                config = shape_near(target, vocab_size=self.vocab_size, seq_len=self.seq_len, family=self.family)
            except IsoflopError as error:
                raise PlanError(f"the planned model has no shape: {error}") from error
            ratio = scale / self.scale_of(config)
            if self.laws.scale == "flops_per_token" or abs(ratio - 1) < 0.02:
                break
            target *= ratio
        assert config is not None
        return config

    def scale_of(self, config: ModelConfig) -> float:
        """A shape's model scale as the laws count it."""
        if self.laws.scale == "flops_per_token":
            return float(flops_per_token(config, "M"))
        counts = count_parameters(config)
        convention = self.laws.conventions.get("params", "")
        idle = counts.n_params_total - counts.n_params_active  # experts that a token does not use cost no compute
        return float((counts.n_params_non_embedding if "non" in convention.lower() else counts.n_params_total) - idle)

    def split(self, budget: float) -> Split:
        """Size and tokens at the loss that a budget reaches; to serve many tokens, a smaller size and more training."""
        split = best_split(self.laws, budget, unique_tokens=self.unique_tokens, max_epochs=self.max_epochs)
        return serving_split(self.laws, budget, self.serve_tokens, split) if self.serve_tokens else split

    def reached_with(self, training_flops: float) -> float:
        """The budget whose loss is reached by a run of this training compute; less than it where serving counts."""
        budget = training_flops
        for _ in range(20 if self.serve_tokens else 0):
            split = self.split(budget)
            budget *= training_flops / (self.laws.flops_factor * split.scale * split.n_tokens)
        return budget

    def at(self, budget: float) -> Run:
        """The run for a budget, in the order of the module's docstring."""
        split = self.split(budget)
        config = self.shape(split.scale)
        scale, factor = self.scale_of(config), self.laws.flops_factor
        compute = factor * split.scale * split.n_tokens
        wanted = compute / (factor * scale)
        m = float(flops_per_token(config, "M"))
        choice = self.law.choose_for(config, total_flops=m * wanted, n_tokens=wanted)
        unit = self.seq_len * self.machine.n_gpus  # every device gets whole sequences
        units = choice.batch_tokens_exact / unit
        coarse = 2 ** max(0, math.floor(math.log2(max(units, 1) / 32)))  # at most 1.6% off, and micro-batches divide it
        batch_tokens = max(1, round(units / coarse)) * coarse * unit
        if wanted < batch_tokens:
            raise PlanError(
                f"budget_flops = {budget:.3g} buys {wanted:.3g} tokens for the smallest sensible model "
                f"({config.n_layers} layers of width {config.d_model}), less than one optimizer step of {batch_tokens} "
                f"tokens; raise the budget, shorten seq_len, or give a law with smaller batches"
            )
        steps = math.ceil(wanted / batch_tokens - 1e-9)  # never below the budget: ratios to a sweep must hold
        learning_rate = float(f"{choice.learning_rate:.6g}")
        seconds = self._device_seconds(config, steps * batch_tokens, batch_tokens)
        return Run(config, split, scale, batch_tokens, learning_rate, steps, seconds)

    def budget_for(self, gpu_hours: float) -> float:
        """The budget whose run takes these device hours: fixed point, because small models are less efficient."""
        if not (self.machine.hardware or self.machine.speed):
            raise PlanError(f"gpu_hours = {gpu_hours} needs hardware (for example H100) or a measured speed; name it")
        budget = gpu_hours * 3600 * (self._flops_per_s() if self.machine.hardware else 1e11)
        for _ in range(40):
            seconds = self.at(budget).device_seconds
            assert seconds is not None
            ratio = gpu_hours * 3600 / seconds
            if abs(ratio - 1) < 0.002:
                break
            budget *= ratio
        return budget

    def _device_seconds(self, config: ModelConfig, n_tokens: int, batch_tokens: int) -> float | None:
        if self.machine.speed is not None:
            return n_tokens / self.machine.speed(config, batch_tokens // self.machine.n_gpus)
        if self.machine.hardware:
            return flops_per_token(config, "exact") * n_tokens / self._flops_per_s()
        return None

    def _flops_per_s(self) -> float:
        return hardware(self.machine.hardware).peak_flops_per_s * self.machine.utilisation


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of one device at the chosen micro-batch."""

    parts: Memory
    precision: str
    zero_stage: int
    n_gpus: int
    micro_batch: int
    limit_bytes: float | None
    """What the device has, where that is known."""
    refusal: str = ""
    """Why this does not fit, and what would; empty where it fits."""

    def tree(self) -> Tree:
        """Plain data, the parts beside the rest."""
        tree = dataclasses.asdict(self)
        return {**tree.pop("parts"), **tree}


def memory_plan(draft: Draft, run: Run, template: Tree) -> MemoryPlan:
    """Memory of one device with the least sharding that fits, and then the most sequences that divide its share."""
    machine = draft.machine
    sequences = run.batch_tokens // run.config.seq_len // machine.n_gpus
    limit = machine.memory_gib * 2**30
    if not limit and machine.hardware:
        limit = hardware(machine.hardware).memory_bytes
    micro_batches = [n for n in range(min(machine.max_micro_batch, sequences), 0, -1) if sequences % n == 0]
    wanted = int((template.get("train") or {}).get("micro_batch") or 0)
    if wanted and sequences % wanted == 0:
        micro_batches = [wanted, *(n for n in micro_batches if n < wanted)]
    memory = functools.partial(training_memory, run.config, precision=machine.precision, world_size=machine.n_gpus)
    stages = range(4) if machine.zero_stage is None and machine.n_gpus > 1 else (machine.zero_stage or 0,)
    made = functools.partial(MemoryPlan, precision=machine.precision, n_gpus=machine.n_gpus, limit_bytes=limit or None)
    for stage, micro_batch in itertools.product(stages, micro_batches):
        parts = memory(micro_batch=micro_batch, zero_stage=stage)
        if not limit or parts.total_bytes <= MEMORY_SHARE * limit:
            return made(parts, zero_stage=stage, micro_batch=micro_batch)
    parts = memory(micro_batch=1, zero_stage=stages[-1])
    gib = {name.removesuffix("_bytes"): size / 2**30 for name, size in dataclasses.asdict(parts).items()}
    refusal = (
        f"memory = {gib.pop('total'):.3g} GiB per device with one sequence at a time exceeds {MEMORY_SHARE:.0%} of "
        f"{limit / 2**30:.3g} GiB ({', '.join(f'{name} {size:.3g}' for name, size in gib.items())}); what would fit: "
        f"{', '.join(_what_fits(draft, run, limit)) or 'a shorter seq_len'}"
    )
    return made(parts, zero_stage=stages[-1], micro_batch=1, refusal=refusal)


def _what_fits(draft: Draft, run: Run, limit: float) -> list[str]:
    """Sharding, more devices, larger devices, a smaller budget: the least of each that holds one sequence."""
    n_gpus, stage = draft.machine.n_gpus, 3 if draft.machine.zero_stage is None else draft.machine.zero_stage
    memory = functools.partial(training_memory, precision=draft.machine.precision, micro_batch=1)

    def fits(config: ModelConfig, room: float = limit, n: int = n_gpus, stage: int = stage) -> bool:
        return memory(config, world_size=n, zero_stage=stage).total_bytes <= MEMORY_SHARE * room

    budget = draft.laws.flops_factor * run.split.scale * run.split.n_tokens
    devices = sorted(HARDWARE.values(), key=lambda device: device.memory_bytes)
    more = (n_gpus << k for k in range(1, 11))
    ways = [
        (f"zero_stage = {n}" for n in range(stage + 1, 4) if n_gpus > 1 and fits(run.config, stage=n)),
        (f"{n} devices with zero_stage = 3" for n in more if fits(run.config, n=n, stage=3)),
        (f"{n_gpus} x {device.name}" for device in devices if fits(run.config, device.memory_bytes)),
        (f"a budget of {c:.1e} FLOPs" for c in (budget / 2**k for k in range(1, 40)) if fits(draft.at(c).config)),
    ]
    found = []
    with contextlib.suppress(PlanError):  # the smallest run that has a shape and a step does not fit either
        found += (text for way in ways for text in itertools.islice(way, 1))
    return found
