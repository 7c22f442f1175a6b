"""Context extension: sizes, origin of the weights, resuming, published phases; bad input is said."""

import dataclasses
import json

import pytest
import torch
from places import ROOT
from safetensors.torch import load_file

from isoflop.errors import CheckpointError, RecipeError
from isoflop.model.config import YarnConfig
from isoflop.recipe import from_tree, load_recipe, write_recipe
from isoflop.training.load_run import find_trained, load_model
from isoflop.training.pretrain.extend import ExtendRecipe, dry_run, extension, require_weights
from isoflop.training.pretrain.recipe import PretrainRecipe
from isoflop.training.pretrain.workload import run_pretrain


@pytest.fixture
def trained(tmp_path, tiny_recipe):
    """A finished run at a context of 16."""
    run_pretrain(tiny_recipe(), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def extending(tiny_tree, trained):
    """Makes an extend recipe of 6 steps to a context of 64, with changes."""

    def make(**sections) -> ExtendRecipe:
        tree = {
            "extend": {"run": str(trained), "seq_len": 64, **sections.pop("extend", {})},
            "data": {},
            "train": {**tiny_tree["train"], "n_tokens": 6 * 128, "batch_tokens": 128, "schedule": "constant"},
            "validate": tiny_tree["validate"],
            "checkpoint": tiny_tree["checkpoint"],
        }
        tree = {name: {**values, **sections.get(name, {})} for name, values in tree.items()}
        return from_tree(tree, ExtendRecipe)

    return make


def test_an_extension_starts_from_the_run_it_names_at_the_new_length(trained, extending, tmp_path):
    made = extension(extending(train={"learning_rate": 1e-9, "warmup_steps": 0}))
    assert made.model.seq_len == 64 and made.model.yarn == YarnConfig(factor=4.0, original_seq_len=16)
    assert made.data.tokens == find_trained(trained).tokens  # the run's, unless the recipe names others
    result = run_pretrain(made, tmp_path / "long")
    assert (result["status"], result["step"], result["start_step"]) == ("finished", 6, 0)
    before, after = (
        load_file(find_trained(run).checkpoint / "model.safetensors") for run in (trained, tmp_path / "long")
    )
    for name, tensor in before.items():  # six steps at a rate of almost nothing
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_an_extension_resumes_and_equals_the_undisturbed_one(extending, tmp_path):
    made = extension(extending())
    run_pretrain(made, tmp_path / "whole")
    calls = iter(range(100))
    stopped = run_pretrain(made, tmp_path / "parts", should_stop=lambda: next(calls) >= 2)
    assert stopped["status"] == "interrupted"
    run_pretrain(made, tmp_path / "parts")
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    again = load_recipe(tmp_path / "whole/recipe.toml", PretrainRecipe)
    assert again == made  # what was run is a pretrain recipe that `isoflop train` runs too


def test_a_second_phase_keeps_the_original_length(extending, tmp_path):
    run_pretrain(extension(extending(extend={"factor": 40.0})), tmp_path / "first")
    second = extension(
        extending(extend={"run": str(tmp_path / "first"), "seq_len": 128, "factor": 40.0}, train={"batch_tokens": 256})
    )
    assert second.model.yarn == YarnConfig(factor=40.0, original_seq_len=16) and second.model.seq_len == 128
    assert run_pretrain(dataclasses.replace(second), tmp_path / "second")["status"] == "finished"


def test_other_weights_make_another_run(extending, trained, tmp_path, tiny_recipe):
    made = extension(extending())
    run_pretrain(made, tmp_path / "long")
    run_pretrain(tiny_recipe(train={"seed": 1}), tmp_path / "other")
    with pytest.raises(CheckpointError, match="another recipe or other data"):
        run_pretrain(extension(extending(extend={"run": str(tmp_path / "other")})), tmp_path / "long")
    assert made.initial is not None
    swapped = dataclasses.replace(
        made, initial=dataclasses.replace(made.initial, checkpoint=str(find_trained(tmp_path / "other").checkpoint))
    )
    with pytest.raises(CheckpointError, match=r"has weights .* asks for"):
        run_pretrain(swapped, tmp_path / "swapped")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"seq_len": 16}, r"extend\.seq_len = 16 must be longer than the run's context of 16; for example 32"),
        ({"factor": 2.0}, r"extend\.factor = 2 reaches 32 tokens from the original 16, less than extend\.seq_len = 64"),
        ({"seq_len": 48}, r"train\.batch_tokens = 128 must be a multiple of model\.seq_len = 48"),
    ],
)
def test_lengths_that_cannot_be_are_refused(extending, section, message):
    with pytest.raises(RecipeError, match=message):
        extension(extending(extend=section))


def test_a_missing_run_a_recipe_without_weights_and_damaged_weights_are_refused(extending, trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere has no recipe\.toml"):
        extension(extending(extend={"run": str(tmp_path / "nowhere")}))
    sizes = trained / "recipe.toml"
    planned = extension(extending(extend={"run": str(sizes)}))
    with pytest.raises(CheckpointError, match="is a recipe, which has no weights"):
        require_weights(planned, str(sizes))
    made = extension(extending())
    (find_trained(trained).checkpoint / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="does not match its sha256"):
        require_weights(made, str(trained))
    with pytest.raises(CheckpointError, match=r"initial\.checkpoint: .* does not match its sha256"):
        run_pretrain(made, tmp_path / "long")


def test_a_recipe_without_a_model_is_no_run(extending, tmp_path):
    (tmp_path / "x.toml").write_text("study = 1\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"has no \[model\] section"):
        extension(extending(extend={"run": str(tmp_path / "x.toml")}))


@pytest.mark.parametrize(("name", "seq_len", "sequences"), [("32k", 32768, 1920), ("128k", 131072, 480)])
def test_the_published_phases_are_planned_on_the_meta_device(name, seq_len, sequences, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = extension(load_recipe(ROOT / f"recipes/extend/deepseek-v3-{name}.toml", ExtendRecipe))
    found = dry_run(made)
    assert (found["steps"], found["batch_sequences"], found["seq_len"]) == (1000, sequences, seq_len)
    assert (found["factor"], found["original_seq_len"]) == (40.0, 4096)
    assert made.train.learning_rate == 7.3e-6 and made.train.schedule == "constant"
    assert found["n_params_total"] > 6.7e11


def test_a_loaded_model_is_the_trained_one_and_reaches_further_if_asked(trained):
    found = find_trained(trained)
    near, far = (load_model(found, device=torch.device("cpu"), seq_len=n) for n in (0, 64))
    tokens = torch.arange(16)[None]
    assert torch.equal(near.forward(tokens), far.forward(tokens)) and far.config.seq_len == 64
    result = json.loads((trained / "result.json").read_text(encoding="utf-8"))
    assert found.checkpoint.name == f"step_{result['step']:08d}"
    write_recipe(trained / "recipe.toml", {"data": {}})
    with pytest.raises(RecipeError, match=r"has no \[model\] section"):
        find_trained(trained)
