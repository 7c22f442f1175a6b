"""Accelerators as data, and the machine of a run: to turn GPU-hours into FLOPs and to see whether a plan fits."""

from collections.abc import Callable
from dataclasses import dataclass

from isoflop.errors import PlanError, did_you_mean
from isoflop.model.config import ModelConfig


@dataclass(frozen=True)
class Hardware:
    """One accelerator."""

    name: str
    peak_flops_per_s: float
    """Dense bf16 matrix products, without sparsity."""
    memory_bytes: float
    """As printed (decimal gigabytes): a little less than the device reports, which leaves room for its own use."""
    source: str


HARDWARE: dict[str, Hardware] = {
    item.name: item
    for item in (
        Hardware("H100", 989.4e12, 80e9, "NVIDIA H100 SXM data sheet"),
        Hardware("H800", 989.4e12, 80e9, "as H100 SXM in bf16 and memory; less NVLink bandwidth"),
        Hardware("H200", 989.4e12, 141e9, "NVIDIA H200 SXM data sheet"),
        Hardware("B200", 2250e12, 180e9, "NVIDIA HGX B200 data sheet"),
        Hardware("A100", 312e12, 80e9, "NVIDIA A100 80 GB data sheet"),
        Hardware("A100-40GB", 312e12, 40e9, "NVIDIA A100 40 GB data sheet"),
        Hardware("L4", 121e12, 24e9, "NVIDIA L4 data sheet"),
    )
}
"""Known accelerators by name."""


def hardware(name: str) -> Hardware:
    """The accelerator of this name, in any case. Raises PlanError with the nearest known name."""
    name = name.upper()
    if name not in HARDWARE:
        hint = did_you_mean(name, HARDWARE, f"known: {', '.join(HARDWARE)}")
        raise PlanError(f"hardware = {name!r} is unknown; {hint} Or give the budget in FLOPs")
    return HARDWARE[name]


TRAINS_ON_GPUS = 1
"""Devices that one `isoflop train` uses today; a plan for more says so."""

Speed = Callable[[ModelConfig, int], float]
"""(shape, batch_tokens) -> tokens per second of one device."""


@dataclass(frozen=True)
class Machine:
    """What the run has."""

    n_gpus: int = 1
    hardware: str = ""
    """Name in `HARDWARE`; empty: no time, cost or memory limit from a table."""
    utilisation: float = 0.4
    """Achieved share of the peak, FLOPs counted with output head and full attention; measure it (0.4: assumption)."""
    memory_gib: float = 0.0
    """Memory of one device, GiB; 0: that of `hardware`."""
    zero_stage: int | None = None
    """Sharding over the devices: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too; None: the least that
    fits."""
    precision: str = "bf16"
    max_micro_batch: int = 16
    """Most sequences of one forward pass on a device."""
    price_per_gpu_hour: float = 0.0
    """In any currency; 0: no cost."""
    speed: Speed | None = None
    """Measured tokens per second of one device; goes before `utilisation`."""


def check_machine(machine: Machine) -> None:
    """Rules for the machine's numbers. Raises PlanError."""
    if not isinstance(machine, Machine):
        raise PlanError(f"machine = {machine!r} must be a Machine, for example Machine(n_gpus=8, hardware='h100')")
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
