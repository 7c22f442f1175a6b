"""How numbers are compared with the goldens: to the last bit where they were made, within a tolerance elsewhere.

JSON keeps every float as the shortest text that reads back as the same float, so equal text is equal bits. Keys that a
golden does not have are no difference: results may learn to say more, never less.
"""

import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

EXCEPTED = frozenset(
    {
        *("wall_s", "tokens_per_s", "data_wait_share", "share_of_peak", "peak_flops_per_s", "peak_source"),
        *("started_at", "finished_at", "predicted_at", "measured_at"),
        *("device", "threads", "torch", "commit", "format"),
        *("machine", "created_at", "packages", "laws_sha256"),
    }
)
"""Names of fields that are time, speed, commit, host or format number: in no golden, never compared.

`laws_sha256` is the hash of a file that carries such a field.
"""
PROSE = frozenset({"warnings", "verdict", "source"})
"""Sentences for people: they may be reworded."""
LOOSE = {
    **dict.fromkeys(("loss_nats", "train_loss_nats", "bits_per_byte"), 5e-3),  # 338 steps, EPYC or Xeon: 3e-3
    "learning_rate": 2e-3,
    **dict.fromkeys(("step", "steps", "n_tokens", "n_params_total", "flops_per_token", "total_flops"), 1e-9),
    **dict.fromkeys(("E", "A", "B", "alpha", "beta", "coefficient", "exponent"), 1e-2),
    **dict.fromkeys(("n_exponent", "d_exponent", "center", "multiplier"), 1e-2),
    "pcc": 2e-2,
}
"""Relative tolerances by field, on another machine than that of the goldens; other fields need only be there."""
UNSTEADY = frozenset({"resamples", "bootstrap_sd", "interval_95"})
"""On another machine not looked into: a resample may end in another of two equal minima."""


def fingerprint() -> dict[str, Any]:
    """What decides the last bits: software that computes, and what the processor offers it."""
    import torch

    vendor, flags = platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else ():
        key, _, value = line.partition(":")
        if key.strip() == "vendor_id":
            vendor = value.strip()
        if key.strip() == "flags":
            flags = {flag for flag in value.split() if flag.startswith(("avx", "amx", "fma"))}
    software = {name: version(name) for name in ("torch", "numpy", "scipy")}
    return {**software, "capability": torch.backends.cpu.get_cpu_capability(), "vendor": vendor, "flags": sorted(flags)}


def without_excepted(tree: Any) -> Any:
    """Plain data as it goes into a golden."""
    if isinstance(tree, dict):
        return {key: without_excepted(value) for key, value in tree.items() if key not in EXCEPTED | PROSE}
    return [without_excepted(item) for item in tree] if isinstance(tree, (list, tuple)) else tree


def differences(golden: Any, found: Any, *, exact: bool, where: str = "", key: str = "") -> list[str]:
    """Places in which `found` is not what the golden says, as readable lines."""
    if key in EXCEPTED | PROSE or (not exact and key in UNSTEADY):
        return []
    if isinstance(golden, dict) and isinstance(found, dict):
        lines = []
        for name, value in golden.items():
            if name in found:
                lines += differences(value, found[name], exact=exact, where=f"{where}.{name}", key=name)
            elif name not in EXCEPTED | PROSE:
                lines.append(f"{where}.{name} is missing")
        return lines
    if isinstance(golden, list) and isinstance(found, list):
        if len(golden) != len(found):
            return [f"{where} has {len(found)} entries, the golden {len(golden)}"]
        pairs = enumerate(zip(golden, found, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, exact=exact, where=f"{where}[{i}]", key=key)]
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (golden, found))
    same = golden == found and (numbers or type(golden) is type(found))
    if not exact and numbers:
        same = key not in LOOSE or math.isclose(golden, found, rel_tol=LOOSE[key], abs_tol=1e-12)
    elif not exact:  # texts such as hashes follow from the last bits
        same = type(golden) is type(found)
    return [] if same else [f"{where} = {found!r}, the golden says {golden!r}"]
