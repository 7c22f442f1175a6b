"""The whole system on this machine, in minutes: text, tokens, sweep, laws, a prediction, the run that tests it, a page.

Every step is the function behind the command of the same name, and every step that is finished is skipped when the
demo is started again. Budgets follow from a measurement of this machine: a slow one trains less, but the target is
the same multiple of the largest sweep budget; a smaller one only if the machine became much slower after that.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from isoflop.errors import IsoflopError, RecipeError, undamaged
from isoflop.recipe import load_recipe, write_json, write_recipe
from isoflop.run import cores
from isoflop.scaling.lr_batch_law import hyper_law
from isoflop.scaling.sweep.calibrate import measure_ladder, measure_speed
from isoflop.scaling.sweep.ladder import Ladder, LadderRecipe, ladder_on_tokens, plan_ladder, resolved
from isoflop.scaling.sweep.shapes import shape_near

LEAST_RATIO = 5.2
"""Target compute over the largest sweep cell, both as the laws count (M D) and with the output head."""
USUAL_RATIO = 7.0
"""In M D, what `LEAST_RATIO` with the head comes to: small models spend more of their compute in the head."""
SWEEP_SHARE, TARGET_SHARE = 0.58, 0.33
"""Of the minutes given: 8.7 and 5 of 15; corpus, tokens, measuring and the report take the rest."""
LATE, LATEST = 0.8, 1.6
"""Of the minutes given: a sweep that ends after the first found less of the machine than was measured; the target then
shrinks so that all should be over by the second."""
LEAST_SHARE = 0.6
"""Of the usual target, however slow the machine has become."""


def run_demo(
    out: Path,
    *,
    minutes: float,
    seed: int,
    workers: int,
    say: Callable[[str], None],
    bar: Callable[[str], Any],
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """Run or resume the demo in `out` and return its score.

    Leaves report.html, records.jsonl, score.json, laws.json, plan.toml, plan.json and the folders of all stages.

    Raises:
        RecipeError: too few minutes, or `out` holds a demo of other minutes or another seed.
        IsoflopError: a step failed; KeyboardInterrupt after Ctrl-C, with everything finished so far kept.
    """
    from isoflop.corpus.build import build_corpus
    from isoflop.corpus.recipe import CorpusRecipe
    from isoflop.scaling.fit import joint
    from isoflop.scaling.plan.choose import Machine, plan
    from isoflop.scaling.plan.curve import sweep_curves
    from isoflop.scaling.plan.score import score_run
    from isoflop.scaling.report.folder import report_study
    from isoflop.scaling.sweep.run import run_sweep
    from isoflop.tokens.shards import TokensRecipe, build_tokens
    from isoflop.training.pretrain.recipe import PretrainRecipe, with_train
    from isoflop.training.pretrain.workload import run_pretrain

    _check_same(out, minutes=minutes, seed=seed)
    began = time.monotonic()

    def step(number: int, text: str) -> None:
        if should_stop():
            raise KeyboardInterrupt
        say(f"[{number}/7 {time.monotonic() - began:5.0f} s] {text}")

    workers = workers or min(cores(), 4)
    with resources.as_file(resources.files("isoflop") / "presets") as presets:
        corpus_recipe = load_recipe(presets / "demo_corpus.toml", CorpusRecipe)
        tokens_recipe = load_recipe(presets / "demo_tokens.toml", TokensRecipe)
        sweep_recipe = load_recipe(presets / "demo_sweep.toml", LadderRecipe)

    step(1, "corpus: sources and documentation of this Python environment")
    with bar("B") as shown:
        corpus = build_corpus(corpus_recipe, out / "corpus", on_progress=shown.stage)
    step(2, f"tokens: {sum(item['n_bytes'] for item in corpus['files']) / 1e6:.0f} MB of text")
    with bar("B") as shown:
        build_tokens(out / "corpus", out / "tokens", tokens_recipe, on_progress=shown.stage)

    step(3, f"ladder: measuring this machine ({workers} workers)")
    planned = _planned_ladder(out, sweep_recipe, minutes=minutes, seed=seed, workers=workers)
    summary = planned.summary()
    write_json(out / "ladder.json", summary)
    budgets = ", ".join(f"{budget:.2g}" for budget in planned.budgets)
    step(4, f"sweep: {len(planned.cells)} cells at {budgets} FLOPs; shared trunks save {planned.saving:.2f}x")
    with bar("FLOP") as shown:
        records = run_sweep(
            list(planned.cells),
            out / "sweep",
            study="demo",
            workers=workers,
            threads=1,
            on_progress=shown.sweep,
            should_stop=should_stop,
        )
    if len(records) < len(planned.cells):
        raise KeyboardInterrupt

    step(5, "fit and plan")
    plan_path, target_dir = out / "plan.toml", out / "target"
    if not plan_path.is_file():
        joint.fit(records, seed=seed, hyper=False).write(out / "laws.json")
        largest = max(cell.total_flops for cell in planned.cells)
        largest_exact = max(cell.total_flops_exact for cell in planned.cells)
        late_s = time.monotonic() - began - LATE * minutes * 60
        share = _share_left(resolved(planned), largest * USUAL_RATIO, late_s, minutes) if late_s > 0 else 1.0
        if share < 1.0:
            say(f"the machine has become slower since it was measured: a target of {share:.0%} of the usual compute")
        least = ratio = LEAST_RATIO * share
        curves = sweep_curves(out / "sweep")
        for _ in range(4):  # the share of the head follows from the shape, the shape from the budget
            made = plan(
                out / "laws.json",
                budget_flops=ratio * largest,
                machine=Machine(max_micro_batch=4096),
                ladder=planned,
                unique_tokens=records[0].unique_tokens,
                curves=curves,
            )
            reached = min(made.total_flops / largest, made.total_flops_exact / largest_exact)
            if reached >= 0.98 * least:
                break
            ratio *= least / reached
        made.write(plan_path)
    recipe = with_train(load_recipe(plan_path, PretrainRecipe), threads=cores())
    prediction = recipe.prediction or {}
    step(
        6,
        f"target: d {recipe.model.d_model} x {recipe.model.n_layers}, {recipe.train.n_tokens:,} tokens; predicted "
        f"{prediction['bits_per_byte']:.4f} bits per byte ({prediction['low']:.4f} to {prediction['high']:.4f})",
    )
    with bar("token") as shown:
        result = run_pretrain(recipe, target_dir, on_progress=shown.training, should_stop=should_stop)
    if result["status"] == "interrupted":
        raise KeyboardInterrupt
    if result["status"] != "finished":
        raise IsoflopError(f"the target run {target_dir} diverged; its metrics are kept; try another --seed")

    step(7, "score and report")
    (out / "records.jsonl").write_bytes((out / "sweep/records.jsonl").read_bytes())
    score = score_run(target_dir, records=out / "records.jsonl")
    score = {**dataclasses.asdict(score), "demo_wall_s": time.monotonic() - began, "seed": seed, "minutes": minutes}
    write_json(out / "score.json", score)
    write_json(
        out / "commands.json", {"commands": [f"isoflop demo --out {out.name} --minutes {minutes:g} --seed {seed}"]}
    )
    report_study(out, out / "report.html", figures=out / "figures", title="isoflop demo")
    return score


def _check_same(out: Path, *, minutes: float, seed: int) -> None:
    """Whether `out` is empty or holds a demo that was asked for with the same values. Raises RecipeError."""
    path = out / "demo.json"
    if not (out / "ladder.toml").is_file() or not path.is_file():
        return
    with undamaged(str(path), RecipeError, "give another --out, or delete the folder"):
        before = json.loads(path.read_text(encoding="utf-8"))
        asked = f"--minutes {before['minutes']:g} --seed {before['seed']}"
    if before != {"minutes": minutes, "seed": seed}:
        raise RecipeError(
            f"{out} holds a demo of {asked}, not of {minutes:g} and {seed} (make demo: MINUTES, SEED, OUT): "
            f"give those to go on with it, or another --out, or delete the folder"
        )


def _planned_ladder(out: Path, preset: LadderRecipe, *, minutes: float, seed: int, workers: int) -> Ladder:
    """The ladder of this demo: measured and decided once, then read back, so that a restart goes on with it."""
    fixed = out / "ladder.toml"
    if fixed.is_file():
        recipe, data_sha256 = ladder_on_tokens(load_recipe(fixed, LadderRecipe))
        return plan_ladder(recipe, data_sha256=data_sha256)
    recipe = dataclasses.replace(
        preset,
        ladder=dataclasses.replace(preset.ladder, minutes=minutes * SWEEP_SHARE, workers=workers, seeds=(seed,)),
        data=dataclasses.replace(preset.data, tokens=str(out / "tokens")),
    )
    recipe, data_sha256 = ladder_on_tokens(recipe)
    speed = measure_ladder(recipe)
    try:
        planned = plan_ladder(recipe, speed, data_sha256=data_sha256)
    except RecipeError as error:
        raise RecipeError(
            f"--minutes {minutes:g} (make demo: MINUTES) must be more, 15 is usual on two idle cores; "
            f"{SWEEP_SHARE:.0%} of it is the sweep's: {error}"
        ) from error
    seconds = _target_seconds(recipe, max(planned.budgets) * USUAL_RATIO)
    # One measurement on a busy machine may be far too slow: no smaller than a quarter of what the sweep can afford.
    share = min(1.0, max(0.25, minutes * TARGET_SHARE * 60 / seconds))
    if share < 1.0:
        section = dataclasses.replace(resolved(planned).ladder, budgets=tuple(b * share for b in planned.budgets))
        planned = plan_ladder(dataclasses.replace(recipe, ladder=section), planned.speed, data_sha256=data_sha256)
    write_json(out / "demo.json", {"minutes": minutes, "seed": seed})
    write_recipe(
        fixed, resolved(planned), header="the sweep of this demo, with the budgets that this machine can afford"
    )
    return planned


def _share_left(recipe: LadderRecipe, budget: float, late_s: float, minutes: float) -> float:
    """Of the usual target, what fits into the rest of the time with the machine as it is now."""
    left_s = (LATEST - LATE) * minutes * 60 - late_s
    return min(1.0, max(LEAST_SHARE, left_s / _target_seconds(recipe, budget)))


def _target_seconds(recipe: LadderRecipe, budget: float) -> float:
    """Expected time of the target on all cores."""
    scale = recipe.allocation.scale_at(budget)
    config = shape_near(scale, vocab_size=recipe.model.vocab_size, seq_len=recipe.model.seq_len)
    batch = hyper_law(recipe.hyper).choose(seq_len=recipe.model.seq_len, total_flops=budget).batch_tokens
    speed = measure_speed([(config, batch)], workers=1, threads=cores(), device="cpu", seconds=3.0)
    return budget / scale / speed(config, batch)
