"""One run for an amount of compute: whole shape, whole batches, whole steps, the memory and the time they take.

In: laws, a law of batch and rate, a `Machine`. Out: a `Run`; scaling/plan/choose.py wraps it into a recipe with its
prediction. Time in, compute out works by searching for the compute whose run takes that time.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from isoflop.errors import IsoflopError, PlanError
from isoflop.model.accounting import count_parameters, flops_per_token, training_memory
from isoflop.model.config import ModelConfig
from isoflop.scaling.lr_batch_law import HyperLaw
from isoflop.scaling.plan.allocate import Split, best_split, serving_split
from isoflop.scaling.plan.hardware import Hardware, hardware
from isoflop.scaling.plan.predict import flops_factor

MEMORY_SHARE = 0.92
"""Share of a device's memory that a plan may fill; the rest is fragmentation and temporaries (assumption)."""

ShapeNear = Callable[..., ModelConfig]
Speed = Callable[[ModelConfig, int], float]
"""(shape, batch_tokens) -> tokens per second of one device."""


@dataclass(frozen=True)
class Machine:
    """What the run has."""

    n_gpus: int = 1
    hardware: str = ""
    """Name in `isoflop.scaling.plan.hardware.HARDWARE`; empty: no time, cost or memory limit from a table."""
    utilisation: float = 0.4
    """Achieved share of the peak, FLOPs counted with output head and full attention; measure it (0.4: assumption)."""
    memory_gib: float = 0.0
    """Memory of one device, GiB; 0: that of `hardware`."""
    zero_stage: int = 0
    """Sharding over the devices: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too."""
    precision: str = "bf16"
    max_micro_batch: int = 16
    """Most sequences of one forward pass on a device."""
    price_per_gpu_hour: float = 0.0
    """In any currency; 0: no cost."""
    speed: Speed | None = None
    """Measured tokens per second of one device; goes before `utilisation`."""


def check_machine(machine: Machine) -> None:
    """Rules for the machine's numbers. Raises PlanError."""
    if not 0 < machine.utilisation <= 1:
        raise PlanError(f"utilisation = {machine.utilisation} must be above 0 and at most 1, for example 0.4")
    for name in ("n_gpus", "max_micro_batch"):
        if getattr(machine, name) < 1:
            raise PlanError(f"{name} = {getattr(machine, name)} must be at least 1")
    for name in ("memory_gib", "price_per_gpu_hour"):
        if getattr(machine, name) < 0:
            raise PlanError(f"{name} = {getattr(machine, name)} must be 0 (unknown) or more")
    if machine.hardware:
        hardware(machine.hardware)


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

    laws: Mapping[str, Any]
    law: HyperLaw
    machine: Machine
    shape_near: ShapeNear
    vocab_size: int
    seq_len: int
    init_std: float
    unique_tokens: float | None
    max_epochs: float | None
    serve_tokens: float

    def shape(self, scale: float) -> ModelConfig:
        """The whole shape nearest to a model scale, in whichever measure the laws use."""
        target = scale if self.laws["scale"] == "flops_per_token" else 6 * scale
        config = None
        for _ in range(12):  # parameters are not a function of M alone: move M until they agree
            try:
                config = self.shape_near(
                    target, vocab_size=self.vocab_size, seq_len=self.seq_len, init_std=self.init_std
                )
            except IsoflopError as error:
                raise PlanError(f"the planned model has no shape: {error}") from error
            ratio = scale / self.scale_of(config)
            if self.laws["scale"] == "flops_per_token" or abs(ratio - 1) < 0.02:
                break
            target *= ratio
        assert config is not None
        return config

    def scale_of(self, config: ModelConfig) -> float:
        """A shape's model scale as the laws count it."""
        if self.laws["scale"] == "flops_per_token":
            return float(flops_per_token(config, "M"))
        counts = count_parameters(config)
        convention = str((self.laws.get("conventions") or {}).get("params", ""))
        idle = counts.n_params_total - counts.n_params_active  # experts that a token does not use cost no compute
        return float((counts.n_params_non_embedding if "non" in convention.lower() else counts.n_params_total) - idle)

    def at(self, budget: float) -> Run:
        """The run for a budget, in the order of the module's docstring."""
        split = best_split(self.laws, budget, unique_tokens=self.unique_tokens, max_epochs=self.max_epochs)
        if self.serve_tokens:
            split = serving_split(self.laws, budget, self.serve_tokens, split)
        config = self.shape(split.scale)
        scale, factor = self.scale_of(config), flops_factor(self.laws)
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
        if not (math.isfinite(gpu_hours) and gpu_hours > 0):
            raise PlanError(f"gpu_hours = {gpu_hours} must be a finite number above 0")
        known: Hardware | None = hardware(self.machine.hardware) if self.machine.hardware else None
        budget = gpu_hours * 3600 * (known.peak_flops_per_s * self.machine.utilisation if known else 1e11)
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
            rate = hardware(self.machine.hardware).peak_flops_per_s * self.machine.utilisation
            return flops_per_token(config, "exact") * n_tokens / rate
        return None


def memory_plan(run: Run, machine: Machine, template: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Memory of one device and the micro-batch: the most sequences that divide its share of the batch and fit."""
    sequences = run.batch_tokens // run.config.seq_len // machine.n_gpus
    limit = machine.memory_gib * 2**30
    if not limit and machine.hardware:
        limit = hardware(machine.hardware).memory_bytes
    micro_batches = [n for n in range(min(machine.max_micro_batch, sequences), 0, -1) if sequences % n == 0]
    wanted = int((template.get("train") or {}).get("micro_batch") or 0)
    if wanted and sequences % wanted == 0:
        micro_batches = [wanted, *(n for n in micro_batches if n < wanted)]
    for micro_batch in micro_batches:
        parts = _bytes(run, machine, micro_batch, machine.zero_stage)
        if not limit or parts["total_bytes"] <= MEMORY_SHARE * limit:
            shared = {"precision": machine.precision, "zero_stage": machine.zero_stage, "n_gpus": machine.n_gpus}
            return {**parts, **shared, "micro_batch": micro_batch, "limit_bytes": limit or None}, micro_batch
    parts = _bytes(run, machine, 1, machine.zero_stage)
    fitting = [n for n in range(4) if _bytes(run, machine, 1, n)["total_bytes"] <= MEMORY_SHARE * limit]
    gib = {name.removesuffix("_bytes"): size / 2**30 for name, size in parts.items()}
    raise PlanError(
        f"memory = {gib.pop('total'):.3g} GiB per device with one sequence at a time exceeds {MEMORY_SHARE:.0%} of "
        f"{limit / 2**30:.3g} GiB ({', '.join(f'{name} {size:.3g}' for name, size in gib.items())}); "
        + (f"zero_stage = {fitting[0]} fits" if fitting else "use more or larger devices, or a smaller budget")
    )


def _bytes(run: Run, machine: Machine, micro_batch: int, zero_stage: int) -> dict[str, Any]:
    memory = training_memory(
        run.config,
        precision=machine.precision,
        micro_batch=micro_batch,
        world_size=machine.n_gpus,
        zero_stage=zero_stage,
    )
    return dataclasses.asdict(memory)
