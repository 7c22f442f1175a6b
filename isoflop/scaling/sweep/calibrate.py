"""Measure the workers of a sweep for a few seconds, so that minutes can be turned into budgets before anything runs.

Several are measured at once, as a sweep will run them: two workers on two cores are slower than one alone. On a cluster
they are tasks on its machines: the one that plans may have another device, or none.
"""

import contextlib
import logging
import statistics
import time
from collections.abc import Callable, Sequence

from isoflop.errors import IsoflopError
from isoflop.launch.engine import Engine
from isoflop.launch.local import LocalEngine
from isoflop.model.config import ModelConfig
from isoflop.recipe import Tree, from_tree, to_tree
from isoflop.scaling.lr_batch_law import hyper_law
from isoflop.scaling.sweep.ladder import LadderRecipe
from isoflop.scaling.sweep.shapes import shape_near
from isoflop.scaling.sweep.speed import Sample, SpeedModel

log = logging.getLogger(__name__)

WINDOWS = 3  # their median counts: another process that wakes up for a moment must not shrink a whole sweep


def measure_speed(
    shapes: Sequence[tuple[ModelConfig, int]],
    *,
    workers: int = 1,
    threads: int = 1,
    device: str = "auto",
    seconds: float = 1.0,
    engine: Engine | None = None,
) -> SpeedModel:
    """Tokens per second of one of several equal workers, for shapes between and around the measured ones.

    Args:
        shapes: (sizes, batch_tokens) to measure; three or more over the range wanted.
        seconds: per shape, after warm-up.
        engine: whose workers are measured; without one, `workers` processes of this machine of `threads` threads each.

    Raises:
        RecipeError: the device is not there.
        IsoflopError: a worker could not measure.
    """
    if engine is None:
        from isoflop.training.device import choose_device

        choose_device(device)
    task = ([(to_tree(config), batch) for config, batch in shapes], device, seconds)
    with contextlib.nullcontext(engine) if engine else LocalEngine(workers, threads) as working:
        waiting = {working.start(_measure, task) for _ in range(working.slots())}
        log.info("measuring the speed of the workers: %d shapes, %d at a time", len(shapes), len(waiting))
        runs: list[list[float]] = []
        while waiting:
            for ended in working.poll(1.0):
                if ended.error:
                    raise IsoflopError(f"measuring the speed of a worker failed: {ended.error}")
                waiting.remove(ended.task)
                runs.append(ended.value)
    # The slowest worker is what a sweep waits for.
    samples = [Sample(config, batch, min(run[index] for run in runs)) for index, (config, batch) in enumerate(shapes)]
    return SpeedModel.fit(samples)


def _measure(task: tuple[list[tuple[Tree, int]], str, float], should_stop: Callable[[], bool]) -> list[float]:
    jobs, device_name, seconds = task
    import torch

    from isoflop.model.transformer import Transformer
    from isoflop.training.device import choose_device
    from isoflop.training.optim import adamw

    device = choose_device(device_name)
    cuda = device.type == "cuda"
    rates = []
    for tree, batch_tokens in jobs:
        config = from_tree(tree, ModelConfig)
        model = Transformer(config, torch.bfloat16 if cuda else torch.float32).to(device)
        model.initialise(torch.Generator().manual_seed(0))
        optimizer = adamw(model, learning_rate=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        shape = (max(1, batch_tokens // config.seq_len), config.seq_len + 1)
        windows = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)
        found = []
        for window_s in (0.0, *[seconds / WINDOWS] * WINDOWS):  # the first is warm-up
            steps, began = 0, time.perf_counter()
            while (steps < 2 or time.perf_counter() - began < window_s) and not (steps and should_stop()):
                losses = model.losses(windows[:, :-1], windows[:, 1:])
                (torch.stack([losses.nats, *losses.mtp_nats]).sum() / batch_tokens).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                _wait(device)
                steps += 1
            if window_s:
                found.append(steps * shape[0] * config.seq_len / (time.perf_counter() - began))
        rates.append(statistics.median(found))
    return rates


def _wait(device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_ladder(recipe: LadderRecipe, engine: Engine | None = None) -> SpeedModel:
    """Measure sizes over the range that a ladder may use, with its workers, threads and device, or on an engine."""
    budgets = recipe.ladder.budgets or (1e11, 1e13)  # only to choose the sizes that are measured
    low = recipe.allocation.scale_at(min(budgets)) / recipe.ladder.size_span
    high = recipe.allocation.scale_at(max(budgets)) * recipe.ladder.size_span
    law = hyper_law(recipe.hyper)
    shapes = []
    for share in (0.0, 0.35, 0.7, 1.0):
        scale = low ** (1 - share) * high**share
        config = shape_near(
            scale, vocab_size=recipe.model.vocab_size, seq_len=recipe.model.seq_len, family=recipe.family
        )
        budget = recipe.allocation.budget_at(scale)
        choice = law.choose_for(config, total_flops=budget, n_tokens=budget / scale)
        shapes.append((config, choice.batch_tokens))
    return measure_speed(
        shapes,
        workers=recipe.ladder.workers,
        threads=recipe.train.threads or 1,
        device=recipe.train.device,
        engine=engine,
    )
