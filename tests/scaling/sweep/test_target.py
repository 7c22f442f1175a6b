"""A ladder is tied to its tokens; a finished target is scored against what was predicted before it."""

import json

import pytest

from isoflop.errors import DataError, PlanError, RecipeError
from isoflop.recipe import from_tree, write_json, write_recipe
from isoflop.scaling.sweep.ladder import LadderRecipe
from isoflop.scaling.sweep.records import read_records
from isoflop.scaling.sweep.target import ladder_on_tokens, score_run
from isoflop.tokens.shards import TokenSet
from isoflop.training.pretrain.workload import run_pretrain

PREDICTION = {
    "bits_per_byte": 4.0,
    "low": 3.9,
    "high": 4.1,
    "level": 0.9,
    "predicted_at": "2020-01-01T00:00:00+00:00",
    "largest_sweep_flops": 1e6,
}


@pytest.fixture
def finished(tmp_path, tiny_recipe):
    """A finished run of two steps that carries a prediction."""
    run_pretrain(tiny_recipe(train={"n_tokens": 128}, prediction=PREDICTION), tmp_path / "run")
    return tmp_path / "run"


def ladder(**data) -> LadderRecipe:
    return from_tree({"ladder": {"budgets": [1e10]}, "model": {"vocab_size": 7}, "data": data}, LadderRecipe)


def test_a_ladder_takes_vocabulary_and_hashes_from_its_tokens_folder(tiny_tokens):
    tied, data_sha256 = ladder_on_tokens(ladder(tokens=str(tiny_tokens)))
    tokens = TokenSet.open(tiny_tokens)
    assert tied.model.vocab_size == tokens.vocab_size == 512
    assert (tied.data.tokenizer_sha256, data_sha256) == (tokens.tokenizer_sha256, tokens.data_sha256)


def test_a_ladder_without_tokens_stays_as_it_is():
    recipe = ladder()
    assert ladder_on_tokens(recipe) == (recipe, "")


def test_a_ladder_for_another_tokenizer_or_missing_tokens_is_refused(tiny_tokens, tmp_path):
    with pytest.raises(DataError, match="a recipe for another tokenizer"):
        ladder_on_tokens(ladder(tokens=str(tiny_tokens), tokenizer_sha256="0" * 64))
    with pytest.raises(DataError, match=r"has no manifest.json; make it with: isoflop tokens"):
        ladder_on_tokens(ladder(tokens=str(tmp_path / "gone")))


def test_a_finished_run_is_scored_and_its_record_holds_prediction_and_score(finished, tmp_path):
    found = score_run(finished, records=tmp_path / "records.jsonl")
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    assert found["measured_bits_per_byte"] == result["bits_per_byte"]
    assert found["relative_error"] == pytest.approx(4.0 / result["bits_per_byte"] - 1)
    assert found["target_flops"] == result["total_flops"] and found["ratio"] == result["total_flops"] / 1e6
    assert found["predicted_at"] < found["started_at"] <= found["measured_at"]
    assert json.loads((finished / "score.json").read_text(encoding="utf-8")) == found
    (record,) = read_records(tmp_path / "records.jsonl")
    assert (record.kind, record.status, record.score) == ("target", "finished", found)
    assert record.prediction == PREDICTION and record.bits_per_byte == result["bits_per_byte"]


def test_scoring_twice_leaves_one_record(finished, tmp_path):
    for _ in range(2):
        score_run(finished, records=tmp_path / "records.jsonl")
    assert len(read_records(tmp_path / "records.jsonl")) == 1


def test_what_was_not_predicted_or_not_finished_is_not_scored(finished, tmp_path, tiny_recipe):
    with pytest.raises(DataError, match="is not a finished run; finish it with isoflop train"):
        score_run(tmp_path / "nothing")
    recipe = tiny_recipe(train={"n_tokens": 128}, prediction={**PREDICTION, "predicted_at": "2999-01-01T00:00:00Z"})
    write_recipe(finished / "recipe.toml", recipe)
    with pytest.raises(PlanError, match="later than the start of the run"):
        score_run(finished)
    write_recipe(finished / "recipe.toml", tiny_recipe(train={"n_tokens": 128}))
    with pytest.raises(PlanError, match=r"has no \[prediction\] section; write the recipe with isoflop plan"):
        score_run(finished)
    write_recipe(finished / "recipe.toml", tiny_recipe(train={"n_tokens": 128}, prediction=PREDICTION))
    write_json(finished / "result.json", {"status": "diverged"})
    with pytest.raises(PlanError, match="ended as diverged"):
        score_run(finished)
    assert not (finished / "score.json").exists()


def test_a_damaged_result_or_a_run_of_something_else_is_named(tmp_path):
    (tmp_path / "recipe.toml").write_text("[medium]\nseed = 1\n", encoding="utf-8")
    for text, message in (
        ("{", r"result.json is not valid JSON .* run isoflop train again"),
        ("[]", r"result.json has no status: it is no result of isoflop train"),
        ('{"status": "finished"}', r"result.json has no bits_per_byte"),
    ):
        (tmp_path / "result.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            score_run(tmp_path)
    (tmp_path / "result.json").write_text('{"status": "diverged"}', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"recipe.toml has no \[model\] section; give a pretrain recipe"):
        score_run(tmp_path)
