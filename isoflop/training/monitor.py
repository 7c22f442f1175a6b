"""What a run is doing: metrics files, speed, share of the device's peak, early signs of divergence.

Files with different promises. `metrics.jsonl` holds what the training computed, one line per optimizer step: a
resumed run reproduces it byte for byte, and `forecast.jsonl` with it, which says where the loss will end. `speed.jsonl`
holds wall-clock figures, which no rerun reproduces.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoflop.model.hardware import HARDWARE
from isoflop.training.forecast import Interval, LossForecast
from isoflop.training.step_hooks import StepHook

log = logging.getLogger(__name__)


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
    final_loss: Interval | None = None
    """Where the training loss will end, from the curve so far."""


@dataclass(frozen=True)
class Watch:
    """Who looks on while a run trains, and what is needed to say how fast it is."""

    on_progress: Callable[[Progress], None] | None = None
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every step; True saves and ends the run as interrupted."""
    flops_per_token: float = 0.0
    peak_flops_per_s: float | None = None
    forecast: LossForecast | None = None
    """Sees every loss; what it knows goes into `forecast.jsonl`, its warning into the log."""


NOBODY = Watch()


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

    def steps(self) -> list[dict[str, Any]]:
        """The lines of the steps that were kept, those of validations left out."""
        rows = map(json.loads, self._path.read_text(encoding="utf-8").splitlines())
        return [row for row in rows if "loss_nats" in row]

    @staticmethod
    def _keep(path: Path, resume_step: int) -> None:
        if not path.exists():
            return
        size = 0
        with path.open("rb") as file:
            for line in file:
                try:
                    step = int(json.loads(line)["step"]) if line.endswith(b"\n") else resume_step + 1
                except (ValueError, KeyError, TypeError):
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


class Reporter:
    """The figures of every step on their way from the device into `metrics.jsonl`, the speed into `speed.jsonl`.

    Losses travel in batches of steps, copied once and read when they are there: the loop never waits for the device.
    """

    STEPS = 16

    def __init__(
        self,
        run_dir: Path,
        *,
        device: torch.device,
        hooks: Sequence[StepHook],
        start_step: int,
        n_steps: int,
        tokens_per_step: int,
        watch: Watch,
    ):
        self._metrics = MetricsFile(run_dir / "metrics.jsonl", resume_step=start_step)
        self._speed = MetricsFile(run_dir / "speed.jsonl", resume_step=start_step)
        self._cuda, self._hooks, self._watch = device.type == "cuda", hooks, watch
        self._n_steps, self._tokens_per_step = n_steps, tokens_per_step
        self._n_recent = max(1, min(100, n_steps // 10))
        earlier = self._metrics.steps()
        self._recent = [line["loss_nats"] for line in earlier[-self._n_recent :]]
        self._forecasts = None
        if watch.forecast is not None:
            self._forecasts = MetricsFile(run_dir / "forecast.jsonl", resume_step=start_step)
            watch.forecast.resume(start_step, earlier)
        self._bits_per_byte: float | None = None
        self._last_s, self._last_step = time.perf_counter(), start_step
        self._gathering: list[tuple[dict[str, Any], Tensor]] = []
        self._travelling: list[tuple[list[dict[str, Any]], Tensor, Any]] = []
        self.diverged_at: int | None = None

    def add(self, step: int, learning_rate: float, values: Tensor) -> None:
        """What `take_step` returned, for finished step `step`."""
        line = {"step": step, "n_tokens": step * self._tokens_per_step, "learning_rate": learning_rate}
        self._gathering.append((line, values.detach()))
        if len(self._gathering) >= self.STEPS:
            self._send()

    def drain(self, *, wait: bool) -> bool:
        """Write figures that have arrived; True when one of them shows divergence."""
        lines = self._arrived(wait=wait)
        if not lines:
            return False
        bad = [index for index, line in enumerate(lines) if not math.isfinite(line["loss_nats"])]
        if bad:  # the run ends at its first bad step, however many more were under way when it was seen
            del lines[bad[0] + 1 :]
            self.diverged_at = lines[-1]["step"]
        self._metrics.write(lines)
        self._foresee(lines)
        self._recent.extend(line["loss_nats"] for line in lines)
        del self._recent[: -self._n_recent]
        now_s = time.perf_counter()
        if lines[-1]["step"] > self._last_step and now_s - self._last_s > 0.5:
            self._report_speed(lines[-1]["step"], now_s)
        return self.diverged_at is not None

    def validated(self, step: int, figures: dict[str, object]) -> None:
        """Write the figures of a validation; the time it took is not the steps'."""
        self._bits_per_byte = figures.get("bits_per_byte")  # type: ignore[assignment]
        self._metrics.write([{"step": step, "validation": figures}])
        self._last_s, self._last_step = time.perf_counter(), step

    def recent_loss(self) -> float:
        """Mean over the last tenth (at least one, at most 100) of the steps; NaN when there are none."""
        return sum(self._recent) / len(self._recent) if self._recent else math.nan

    def close(self) -> None:
        self._metrics.close()
        self._speed.close()
        if self._forecasts is not None:
            self._forecasts.close()

    def _foresee(self, lines: list[dict[str, Any]]) -> None:
        if self._forecasts is None or self._watch.forecast is None:
            return
        known = [found for line in lines if (found := self._watch.forecast.add(line))]
        self._forecasts.write(known)
        for found in known:
            if "warning" in found:
                log.warning("%s", found["warning"])

    def _report_speed(self, step: int, now_s: float) -> None:
        watch = self._watch
        tokens_per_s = (step - self._last_step) * self._tokens_per_step / (now_s - self._last_s)
        peak = watch.peak_flops_per_s
        share = watch.flops_per_token * tokens_per_s / peak if peak else None
        self._speed.write([{"step": step, "tokens_per_s": tokens_per_s, "share_of_peak": share}])
        self._last_s, self._last_step = now_s, step
        if watch.on_progress is not None:
            watch.on_progress(
                Progress(
                    step=step,
                    n_steps=self._n_steps,
                    n_tokens=step * self._tokens_per_step,
                    loss_nats=self.recent_loss(),
                    bits_per_byte=self._bits_per_byte,
                    tokens_per_s=tokens_per_s,
                    share_of_peak=share,
                    seconds_left=(self._n_steps - step) * self._tokens_per_step / tokens_per_s,
                    final_loss=watch.forecast.final if watch.forecast else None,
                )
            )

    def _send(self) -> None:
        if not self._gathering:
            return
        values, event = torch.stack([value for _, value in self._gathering]), None
        if self._cuda:
            arrived = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            arrived.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            values = arrived
        self._travelling.append(([line for line, _ in self._gathering], values, event))
        self._gathering = []

    def _arrived(self, *, wait: bool) -> list[dict[str, Any]]:
        if wait:
            self._send()
        lines = []
        while self._travelling:
            begun, values, event = self._travelling[0]
            if event is not None:
                if wait:
                    event.synchronize()
                elif not event.query():
                    break
            for line, (loss, norm, *others) in zip(begun, values.tolist(), strict=True):
                lines.append({**line, "loss_nats": loss, "gradient_norm": norm, **self._of_hooks(line["step"], others)})
            self._travelling.pop(0)
        return lines

    def _of_hooks(self, step: int, values: list[float]) -> dict[str, object]:
        found: dict[str, object] = {}
        for hook in self._hooks:
            found |= hook.figures(step, values[: hook.n_figures])
            values = values[hook.n_figures :]
        return found
