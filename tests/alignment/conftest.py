"""A base run of seconds and small sets of conversations and pairs, shared by all tests of this room."""

import json
import random
from pathlib import Path

import pytest

from isoflop.alignment.recipe import DpoRecipe, RewardRecipe, SftRecipe
from isoflop.recipe import from_tree
from isoflop.training.pretrain.workload import run_pretrain

WORDS = "north stone river paper garden silver window letter winter music"
WRONG = "south metal ocean wooden forest golden mirror number summer drums"


def write_lines(path: Path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def base(tmp_path_factory, tiny_tree):
    """A run that has seen the tiny corpus for a few steps, with a context of 96 tokens."""
    from isoflop.training.pretrain.recipe import PretrainRecipe

    tree = {**tiny_tree, "model": {**tiny_tree["model"], "seq_len": 96}}
    tree["train"] = {**tiny_tree["train"], "n_tokens": 4 * 192, "batch_tokens": 192, "warmup_steps": 1}
    folder = tmp_path_factory.mktemp("base") / "run"
    run_pretrain(from_tree(tree, PretrainRecipe), folder)
    return folder


@pytest.fixture(scope="session")
def talks(tmp_path_factory) -> str:
    generator, words = random.Random(2), WORDS.split()
    records = []
    for index in range(120):
        picked = generator.choices(words, k=generator.randint(1, 5))
        records.append({"prompt": f"say {index} {' '.join(picked)}", "response": " ".join(picked)})
    records.append({"prompt": "no answer", "response": ""})
    records.append({"prompt": "too long", "response": "word " * 200})
    return write_lines(tmp_path_factory.mktemp("talks") / "talks.jsonl", records)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> str:
    generator, words = random.Random(3), WORDS.split()
    records = []
    for index in range(90):
        picked = generator.choices(words, k=generator.randint(2, 4))
        wrong = generator.choices(WRONG.split(), k=len(picked))
        records.append(
            {"prompt": f"say {index} {' '.join(picked)}", "chosen": " ".join(picked), "rejected": " ".join(wrong)}
        )
    records.append({"prompt": "same", "chosen": "a", "rejected": "a"})
    return write_lines(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", records)


@pytest.fixture
def make(base, talks, pairs):
    """Makes a recipe of "sft", "dpo" or "reward", with changes by section."""
    schemas = {"sft": SftRecipe, "dpo": DpoRecipe, "reward": RewardRecipe}

    def build(kind: str = "sft", **sections):
        tree = {
            "initial": {"run": str(base)},
            "data": {"train": [talks if kind == "sft" else pairs], "valid_fraction": 0.2},
            "train": {"learning_rate": 0.01, "epochs": 2, "batch": 32, "device": "cpu", "threads": 1},
            "checkpoint": {"every_s": 0.0},
        }
        if kind != "reward":
            tree["answers"] = {"prompts": 12, "max_new_tokens": 16, "shown": 3}
        for name, values in sections.items():
            tree[name] = {**tree.get(name, {}), **values}
        return from_tree(tree, schemas[kind])

    return build
