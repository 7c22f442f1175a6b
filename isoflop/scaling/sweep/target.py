"""Around the big run: a ladder meets its tokens folder, and a finished target meets its prediction."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from isoflop.errors import DataError, PlanError, RecipeError
from isoflop.recipe import load_recipe, to_tree, write_json
from isoflop.scaling.plan.score import score
from isoflop.scaling.sweep.cells import stable_hash
from isoflop.scaling.sweep.recipe import LadderModelSection, LadderRecipe
from isoflop.scaling.sweep.records import append_record
from isoflop.scaling.sweep.run import record_of_run
from isoflop.tokens.shards import TokenSet
from isoflop.training.load_run import read_sizes
from isoflop.training.pretrain.recipe import PretrainRecipe, check_prediction

log = logging.getLogger(__name__)


def ladder_on_tokens(recipe: LadderRecipe) -> tuple[LadderRecipe, str]:
    """The recipe with vocabulary and tokenizer hash of its tokens folder, and the hash of the data.

    So every cell is tied to the data it was planned on; without a folder the recipe stays and the hash is empty.

    Raises:
        DataError: no such folder, or it was made with another tokenizer than the recipe names.
        RecipeError: weights of a domain that the folder lacks.
    """
    if not recipe.data.tokens:
        return recipe, ""
    token_set = TokenSet.open(recipe.data.tokens, tokenizer_sha256=recipe.data.tokenizer_sha256)
    domains = token_set.domains("train")
    unknown = sorted(set(recipe.data.weights) - set(domains))
    if unknown:
        raise RecipeError(f"data.weights.{unknown[0]}: no such domain; the tokens have: {', '.join(domains)}")
    if recipe.model.vocab_size not in (LadderModelSection.vocab_size, token_set.vocab_size):
        log.warning(
            "model.vocab_size = %d is set to the %d rows of %s, padding included",
            recipe.model.vocab_size,
            token_set.vocab_size,
            recipe.data.tokens,
        )
    tied = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, vocab_size=token_set.vocab_size),
        data=dataclasses.replace(recipe.data, tokenizer_sha256=token_set.tokenizer_sha256),
    )
    return tied, token_set.data_sha256


def score_run(run_dir: Path, *, records: Path | None = None) -> dict[str, Any]:
    """Score a finished run against the prediction in its recipe; writes `run_dir`/score.json.

    `records` gets a line of kind "target" with prediction and score.

    Raises:
        DataError: the run is not finished.
        PlanError: the recipe carries no prediction, or one made after the run had started.
    """
    result_path, recipe_path = run_dir / "result.json", run_dir / "recipe.toml"
    if not result_path.is_file():
        raise DataError(f"{run_dir} has no result.json: it is not a finished run; finish it with isoflop train")
    result = _result(result_path)
    read_sizes(recipe_path)  # says it where this is a run of something else
    recipe = load_recipe(recipe_path, PretrainRecipe)
    if not recipe.prediction:
        raise PlanError(
            f"{recipe_path} has no [prediction] section; write the recipe with isoflop plan before training"
        )
    check_prediction(recipe.prediction)
    if result["status"] != "finished":
        raise PlanError(f"{run_dir} ended as {result['status']}: there is no loss to score; train it again")
    found = score(
        recipe.prediction,
        measured_bits_per_byte=result["bits_per_byte"],
        started_at=result["started_at"],
        measured_at=result["finished_at"],
        target_flops=result["total_flops"],
        target_flops_exact=result["total_flops_exact"],
    )
    write_json(run_dir / "score.json", found)
    if records is not None:
        tree = to_tree(recipe)
        name = f"target-{stable_hash([tree, result['trajectory']])}"
        record = record_of_run(
            tree, result, run_id=name, study="", kind="target", budget_flops=result["total_flops"], trunk_id=""
        )
        append_record(records, dataclasses.replace(record, prediction=recipe.prediction, score=found))
    return found


def _result(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); run isoflop train again") from error
    needed = ["status"]
    if isinstance(found, dict) and found.get("status") == "finished":
        needed += ["bits_per_byte", "started_at", "finished_at", "total_flops", "total_flops_exact"]
    missing = [key for key in needed if not isinstance(found, dict) or key not in found]
    if missing:
        raise DataError(f"{path} has no {missing[0]}: it is no result of isoflop train; run that again")
    return found
