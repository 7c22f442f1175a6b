"""Accelerators as data: peak rate and memory, to turn GPU-hours into FLOPs and to see whether a plan fits."""

import difflib
from dataclasses import dataclass

from isoflop.errors import PlanError


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
        close = difflib.get_close_matches(name, HARDWARE, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(HARDWARE)}"
        raise PlanError(f"hardware = {name!r} is unknown; {hint} Or give the budget in FLOPs")
    return HARDWARE[name]
