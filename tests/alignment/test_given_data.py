"""Real conversations and pairs, in the formats they are published in, through the readers and the demo's chain."""

import json

import pytest
from places import SHARED
from real_samples import head

from isoflop.alignment.conversations import read_conversations, read_pairs
from isoflop.alignment.demo import DemoRecipe, _given_sets, run_demo
from isoflop.alignment.records import Quarantine
from isoflop.cli.console import Bar
from isoflop.errors import DataError
from isoflop.recipe import from_tree

FILES = sorted(path for kind in ("sft", "preference") for path in (SHARED / kind).rglob("*.json*"))
NO_FORMAT = {
    "test.ape.json.gz": "no known format",
    "valid.ape.json.gz": "no known format",
    "kto_en_demo.json.gz": "no chosen",
}
"""Word problems and single judged answers: no conversations and no pairs, which the readers say."""
needs_data = pytest.mark.skipif(not FILES, reason="no real conversations beside the checkout")


def tiny_recipe(seq_len: int = 384) -> DemoRecipe:
    """A chain of seconds."""
    train = {"learning_rate": 1e-3, "epochs": 1, "batch": 32, "device": "cpu", "threads": 1}
    sizes = {"n_layers": 1, "d_model": 16, "n_heads": 2, "n_kv_heads": 2, "d_head": 8, "d_ff": 32}
    tree = {
        "corpus": {"max_mb": 0.3},
        "tokenizer": {"vocab_size": 382, "n_reserved": 0, "padded_vocab_size": 384},
        "model": {**sizes, "vocab_size": 384, "seq_len": seq_len},
        "base": {"n_tokens": 2 * 768, "batch_tokens": 768, "learning_rate": 1e-3, "device": "cpu", "threads": 1},
        "talks": {"n_arithmetic": 1, "n_docstrings": 1, "n_prompts": 4},
        "sft": train,
        "second": {"learning_rate": 1e-3, "epochs": 0.5},
        "pairs": {"n_train": 1, "n_valid": 1},
        "dpo": {},
        "dpo_train": train,
    }
    return from_tree(tree, DemoRecipe)


@needs_data
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_published_format_is_read_or_named(path, tmp_path):
    n = head(path, tmp_path / path.name, 30)
    bad = Quarantine()
    read = read_conversations if path.is_relative_to(SHARED / "sft") else read_pairs
    found = read([tmp_path / path.name], "auto", bad)
    if path.name in NO_FORMAT:
        assert not found and len(bad.records) == n
        assert all(record.reason.startswith(NO_FORMAT[path.name]) for record in bad.records)
    else:
        assert len(found) == n and not bad.records


@needs_data
@pytest.mark.slow
def test_the_demo_reads_a_data_folder_end_to_end_and_counts_what_it_leaves_out(tmp_path):
    data = tmp_path / "data"
    n = 0
    for name in ("sft/alpaca_en", "sft/dolly_hhrlhf_small", "preference/hh_rlhf_harmless"):
        for path in sorted((SHARED / name).glob("*.json*")):
            n_kept = head(path, data / name / path.name, 40)
            n += n_kept if name.startswith("sft") else 0
    judged = "preference/alpaca_eval_gpt4_pairs/pairs.jsonl.gz"
    head(SHARED / judged, data / judged, 40)
    (data / "sft/dolly_hhrlhf_small/bad.jsonl").write_text('{"prompt": "who?", "response": ""}\n{"prompt": \n')
    said = []
    score = run_demo(tmp_path / "out", data=data, say=said.append, bar=Bar, recipe=tiny_recipe())
    assert [*score] == ["base", "sft1", "sft2", "dpo"]
    assert all(item["pair_accuracy"]["n"] > 3 and item["assistant_loss"]["n"] > 3 for item in score.values())
    detail = json.loads((tmp_path / "out/detail.json").read_text())
    read = detail["conversations"]
    assert read["n_read"] == n and read["n_train"] + read["n_valid"] == read["n_short"] <= n
    assert sum(read["quarantined"].values()) == 2
    lines = (tmp_path / "out/data/quarantine.jsonl").read_text()
    assert "bad.jsonl:1" in lines and "bad.jsonl:2" in lines
    samples = detail["samples"]
    n_lost = 80 - samples["n_train"] - samples["n_valid"]
    assert n_lost <= sum(samples["set_aside"].values()) <= 2 * n_lost, "each side of a pair is counted"
    assert "conversations read" in (tmp_path / "out/report.html").read_text()


def test_a_data_folder_that_cannot_be_used_is_refused_before_anything_is_trained(tmp_path, refused):
    (tmp_path / "data/sft").mkdir(parents=True)
    said = refused("align", "demo", "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert "has no folder preference; give a folder" in said
    assert not (tmp_path / "out").exists()


def test_conversations_that_leave_nothing_to_hold_out_are_named(tmp_path):
    for name in ("sft", "preference"):
        (tmp_path / name).mkdir()
    (tmp_path / "sft/a.jsonl").write_text('{"prompt": "who?", "response": "I."}\n')
    with pytest.raises(DataError, match=r"1 conversations in .*, 1 of them under 600 characters"):
        _given_sets(tmp_path, tmp_path / "out")
