"""Learning rate as a pure function of the step: nothing to save, nothing to restore.

Every schedule starts with a linear warm-up from 0; `step` counts finished optimizer steps, so step 0 is the first one.
"""

import math
from typing import Literal

Schedule = Literal["multi_step", "cosine", "constant_cooldown", "constant"]

MULTI_STEP = ((0.8, 1.0), (0.9, 0.316), (1.0, 0.1))
"""Share of training up to which a factor holds (Source: arXiv 2401.02954, section 2.3)."""


def cooldown_start(n_steps: int, cooldown_fraction: float) -> int:
    """First step of the cooldown; up to here a run equals every longer run of the same trunk."""
    return n_steps - round(n_steps * cooldown_fraction)


def factor(step: int, *, n_steps: int, warmup_steps: int, schedule: Schedule, cooldown_fraction: float) -> float:
    """Learning rate at optimizer step `step` (0 <= step < n_steps) as a share of the peak.

    multi_step: full rate to 80% of the steps, 31.6% of it to 90%, then 10% (arXiv 2401.02954, section 2.3).
    cosine: half a cosine from the peak to 10% of it.
    constant_cooldown: full rate, then linearly to 0 over the last `cooldown_fraction` (arXiv 2405.18392).
    constant: full rate to the end, as context extension has it (arXiv 2412.19437, section 4.3).
    """
    ramp = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    if schedule == "multi_step":
        share = step / n_steps
        return ramp * next(value for until, value in MULTI_STEP if share < until)
    if schedule == "cosine":
        return ramp * (0.1 + 0.45 * (1.0 + math.cos(math.pi * step / n_steps)))
    start = cooldown_start(n_steps, cooldown_fraction)
    if schedule == "constant" or step < start:
        return ramp
    return ramp * (n_steps - step) / (n_steps - start + 1)
