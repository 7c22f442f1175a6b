"""A tokens folder of seconds: two domains of made-up words, 512 vocabulary rows, shared by all tests of a session."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from isoflop.cli import main as cli
from isoflop.corpus.build import build_corpus
from isoflop.corpus.dedup.options import DedupOptions
from isoflop.corpus.document import SourceOptions
from isoflop.corpus.recipe import CorpusRecipe, SplitOptions
from isoflop.recipe import from_tree
from isoflop.tokens.shards import TokenizerOptions, TokensRecipe, build_tokens
from isoflop.training.pretrain.recipe import PretrainRecipe

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
"""The same examples every time, however slow the machine; `--hypothesis-profile=default` searches for others."""


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    generator = random.Random(5)
    words = ["".join(generator.choices("etaoinshrdlu", k=generator.randint(2, 7))) for _ in range(400)]
    for domain, n_documents in (("prose", 80), ("code", 40)):
        lines = []
        for _ in range(n_documents):
            rows = [" ".join(generator.choices(words, weights=range(400, 0, -1), k=10)) for _ in range(25)]
            lines.append(json.dumps({"text": "\n".join(rows)}))
        (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = ("prose", "code")
    recipe = CorpusRecipe(
        sources=tuple(SourceOptions(path=str(folder / f"{name}.jsonl"), domain=name) for name in names),
        split=SplitOptions(valid_fraction=0.15),
        dedup=DedupOptions(near=False),
    )
    build_corpus(recipe, folder / "corpus")
    return folder / "corpus"


@pytest.fixture(scope="session")
def tiny_tokens(tiny_corpus: Path) -> Path:
    folder = tiny_corpus.parent / "tokens"
    build_tokens(tiny_corpus, folder, TokensRecipe(TokenizerOptions(510, n_reserved=0, padded_vocab_size=512)))
    return folder


@pytest.fixture(scope="session")
def tiny_tree(tiny_tokens: Path) -> dict[str, Any]:
    """A pretrain recipe of 30 steps of 64 tokens, as plain data; copy before changing."""
    return {
        "model": {
            "n_layers": 1,
            "d_model": 8,
            "n_heads": 2,
            "n_kv_heads": 2,
            "d_head": 4,
            "d_ff": 16,
            "vocab_size": 512,
            "seq_len": 16,
            "init_std": 0.1,
        },
        "data": {"tokens": str(tiny_tokens)},
        "train": {
            "n_tokens": 30 * 64,
            "batch_tokens": 64,
            "learning_rate": 0.01,
            "warmup_steps": 3,
            "schedule": "constant_cooldown",
            "device": "cpu",
            "threads": 1,
        },
        "validate": {"max_tokens": 512},
        "checkpoint": {"every_s": 0.0},
    }


@pytest.fixture
def tiny_recipe(tiny_tree: dict[str, Any]):
    """Makes a recipe of it, with changes: tiny_recipe(train={"seed": 1}, checkpoint={"every_steps": 5})."""

    def make(**sections: dict[str, Any]) -> PretrainRecipe:
        tree = {name: {**tiny_tree.get(name, {}), **sections.get(name, {})} for name in (*tiny_tree, *sections)}
        return from_tree(tree, PretrainRecipe)

    return make


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused with exit code 2; returns its one message."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
        errors = capsys.readouterr().err
        assert stopped.value.code == 2, errors
        assert "Traceback" not in errors
        lines = [line for line in errors.splitlines() if "isoflop: error:" in line]
        assert len(lines) == 1, errors
        return lines[0]

    return run
