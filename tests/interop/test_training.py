"""An imported model is trained on and extended like any run of ours."""

import json
from pathlib import Path

import pytest
import torch
from interop_models import export

from isoflop.interop.export_hf import open_run
from isoflop.interop.import_hf import import_folder
from isoflop.recipe import from_tree
from isoflop.training.pretrain.extend import ExtendRecipe, extension
from isoflop.training.pretrain.workload import run_pretrain


@pytest.fixture
def imported(tmp_path, tiny_recipe) -> Path:
    """A trained run that went out and came back."""
    run_pretrain(tiny_recipe(), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "back")
    return tmp_path / "back"


def test_training_goes_on_from_imported_weights(tmp_path, tiny_recipe, imported):
    source = open_run(imported)
    initial = {"checkpoint": str(source.checkpoint), "model_sha256": imported_sha256(imported)}
    found = run_pretrain(tiny_recipe(initial=initial, train={"learning_rate": 1e-12}), tmp_path / "on")
    before = run_pretrain(tiny_recipe(), tmp_path / "run")
    assert found["loss_nats"] == pytest.approx(before["loss_nats"], rel=1e-5)  # steps this small change nothing
    assert found["trajectory"] != before["trajectory"]


def test_an_imported_model_is_extended_to_a_longer_context(tmp_path, tiny_tree, imported):
    train = {**tiny_tree["train"], "batch_tokens": 128}
    tree = {"extend": {"run": str(imported), "seq_len": 32}, "data": tiny_tree["data"], "train": train}
    recipe = extension(from_tree(tree, ExtendRecipe))
    assert recipe.model.yarn is not None and recipe.model.seq_len == 32
    assert torch.isfinite(torch.tensor(run_pretrain(recipe, tmp_path / "long")["loss_nats"]))


def imported_sha256(run: Path) -> str:
    return json.loads((run / "import.json").read_text())["weights_sha256"]
