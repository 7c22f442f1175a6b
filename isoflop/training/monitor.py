"""What a run is doing: metrics files, speed, share of the device's peak, early signs of divergence.

Two files with different promises. `metrics.jsonl` holds what the training computed, one line per optimizer step: a
resumed run reproduces it byte for byte. `speed.jsonl` holds wall-clock figures, which no rerun reproduces.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isoflop.model.hardware import HARDWARE


@dataclass(frozen=True)
class Progress:
    """One glance at a run, for a progress bar."""

    step: int
    n_steps: int
    n_tokens: int
    loss_nats: float
    bits_per_byte: float | None
    """Of the latest validation."""
    tokens_per_s: float
    share_of_peak: float | None
    seconds_left: float


def peak_flops_per_s(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Peak of a device for matrix products, and where the number comes from.

    A GPU is looked up in the vendor's table; a CPU is measured for a tenth of a second with a 1024^3 product.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known in HARDWARE.values():
            if known.name in name:
                return known.peak_flops_per_s, f"{name} data sheet, dense bf16"
    return measured_matmul_flops_per_s(device, dtype), f"measured 1024^3 {dtype} product"


def measured_matmul_flops_per_s(
    device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.1
) -> float:
    """Best rate of a square matrix product on random data, over at least three products and `seconds`."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    best, spent, rounds = float("inf"), 0.0, 0
    while spent < seconds or rounds < 4:
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - start
        spent, rounds = spent + elapsed, rounds + 1
        if rounds > 1:  # the first product pays for set-up
            best = min(best, elapsed)
    return 2 * size**3 / best


class MetricsFile:
    """An append-only JSONL file that a resumed run first cuts back to the step it resumes from."""

    def __init__(self, path: Path, *, resume_step: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._keep(path, resume_step)
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def last_losses(self, n: int) -> list[float]:
        """Training losses of the last `n` steps that were kept."""
        rows = map(json.loads, self._path.read_text(encoding="utf-8").splitlines())
        return [row["loss_nats"] for row in rows if "loss_nats" in row][-n:]

    @staticmethod
    def _keep(path: Path, resume_step: int) -> None:
        if not path.exists():
            return
        size = 0
        with path.open("rb") as file:
            for line in file:
                try:
                    step = json.loads(line)["step"] if line.endswith(b"\n") else resume_step + 1
                except (ValueError, KeyError):
                    break  # torn by a kill: nothing after it can be trusted
                if step > resume_step:
                    break
                size += len(line)
        with path.open("rb+") as file:
            file.truncate(size)

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Append and hand to the operating system, so that a killed process loses nothing that it reported."""
        self._file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._file.flush()

    def close(self) -> None:
        self._file.close()
