"""A run knows its tokenizer by hash: where a path is followed again, another tokenizer is refused and never shipped."""

import json
import shutil
from pathlib import Path

import pytest

from isoflop.errors import CheckpointError
from isoflop.evaluation.passkey import compare_context
from isoflop.interop.export_hf import export_run
from isoflop.recipe import from_tree, to_tree
from isoflop.tokens.shards import TokenizerOptions, TokensRecipe, build_tokens
from isoflop.training.load_run import tokenizer_sha256_of
from isoflop.training.pretrain.extend import ExtendRecipe, extension
from isoflop.training.pretrain.workload import run_pretrain

pytest.importorskip("transformers", reason="transformers is not installed: pip install isoflop[interop]")


@pytest.fixture(scope="module")
def others(tiny_corpus, tmp_path_factory) -> Path:
    """Tokens of the same size of vocabulary by another tokenizer."""
    folder = tmp_path_factory.mktemp("others") / "tokens"
    build_tokens(
        tiny_corpus, folder, TokensRecipe(TokenizerOptions(510, n_reserved=0, padded_vocab_size=512, rules="v3"))
    )
    return folder


@pytest.fixture
def run(tmp_path, tiny_recipe, tiny_tokens):
    """A run whose tokens folder may be changed, and the recipe it was trained by."""
    tokens = shutil.copytree(tiny_tokens, tmp_path / "tokens")
    recipe = tiny_recipe(data={"tokens": str(tokens)}, train={"n_tokens": 5 * 64})
    run_pretrain(recipe, tmp_path / "run")
    return tmp_path / "run"


def rebuild(run: Path, others: Path) -> None:
    shutil.rmtree(run.parent / "tokens")
    shutil.copytree(others, run.parent / "tokens")


def shipped(folder: Path) -> str:
    return json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_sha256"]


def test_an_export_ships_the_tokenizer_of_the_run_after_its_tokens_were_rebuilt(run, others, tmp_path):
    before = tokenizer_sha256_of(run)
    rebuild(run, others)
    export_run(run, tmp_path / "hf", parity=False)
    assert shipped(tmp_path / "hf") == before


def test_a_run_of_older_versions_is_not_exported_with_a_rebuilt_tokenizer(run, others, tmp_path):
    shutil.rmtree(run / "tokenizer")  # older versions kept none
    rebuild(run, others)
    with pytest.raises(CheckpointError, match=r"was trained with .*built anew.*--tokenizer DIR"):
        export_run(run, tmp_path / "hf", parity=False)
    assert not (tmp_path / "hf").exists()


def test_a_tokenizer_given_by_hand_must_be_the_right_one(run, others, tmp_path):
    with pytest.raises(CheckpointError, match="give the right one: --tokenizer DIR"):
        export_run(run, tmp_path / "hf", tokenizer=others, parity=False)


def test_passkeys_are_not_asked_in_the_tokens_of_another_tokenizer(run, others):
    with pytest.raises(CheckpointError, match="give the right one: --tokens DIR"):
        compare_context(run, tokens=others, n_trials=1)


def test_an_extension_does_not_go_on_with_another_tokenizer(run, others, tiny_recipe, tmp_path):
    tree = to_tree(tiny_recipe())
    sections = {name: tree[name] for name in ("train", "validate", "checkpoint")}
    asked = {"extend": {"run": str(run), "seq_len": 32}, "data": {"tokens": str(others)}, **sections}
    made = extension(from_tree(asked, ExtendRecipe))
    with pytest.raises(CheckpointError, match="reuse_tokenizer in a tokens recipe"):
        run_pretrain(made, tmp_path / "longer")


def test_from_another_working_folder_the_same_places_are_found(run, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.rmtree(run / "tokenizer")
    export_run(run, tmp_path / "hf", parity=False)
    assert shipped(tmp_path / "hf") == tokenizer_sha256_of(run)
