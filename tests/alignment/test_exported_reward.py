"""An exported reward model gives the same scores in transformers, alone and in a padded batch; adapters are merged."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from evaluation_runs import run_of
from interop_models import FAMILIES
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from isoflop.alignment.reward_model import load_reward_model, run_reward, score_conversations
from isoflop.cli.main import main
from isoflop.interop.export_reward import compare_scores
from isoflop.tokens.chat import Message, load_template

TALKS = [
    [Message("user", "say 3 stone"), Message("assistant", "stone")],
    [Message("user", "say 9 paper window"), Message("assistant", "metal ocean and much more that nobody asked for")],
    [Message("user", "who?"), Message("assistant", "music"), Message("user", "and?"), Message("assistant", "winter")],
]


@pytest.mark.parametrize("kind", ["dense", "adapters", "experts"])
def test_transformers_gives_the_same_scores_as_ours(kind, make, tiny_tokens, tmp_path, capsys):
    sections = {"adapters": {"adapter": {"rank": 2}}}.get(kind, {})
    if kind == "experts":
        config = replace(FAMILIES["v3"], vocab_size=512, seq_len=96, mtp_depth=1)
        sections = {"initial": {"run": str(run_of(tmp_path / "base", tiny_tokens, config=config))}}
    run, out = tmp_path / "run", tmp_path / "hf"
    run_reward(make("reward", train={"epochs": 1, "learning_rate": 0.03}, **sections), run)
    main(["export", str(run), "--out", str(out), "--json", str(tmp_path / "found.json")])
    model, template = load_reward_model(run), load_template(run / "tokenizer")
    expected = score_conversations(model, template, TALKS)
    assert max(expected) - min(expected) > 1e-3, "scores that are all alike would prove nothing"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        out, num_labels=1, dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    turns = [[message._asdict() for message in talk] for talk in TALKS]
    rows = [tokenizer.apply_chat_template(talk, return_dict=False) for talk in turns]
    assert rows == [template.row(talk).ids.tolist() for talk in TALKS]
    with torch.no_grad():
        alone = [theirs(torch.tensor([ids])).logits.item() for ids in rows]
        batch = theirs(
            **tokenizer.apply_chat_template(turns, padding=True, return_tensors="pt", return_dict=True)
        ).logits
    assert alone == pytest.approx(expected, abs=1e-5) and batch[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["architecture"] == theirs.config.architectures[0] and found["merged"] is (kind == "adapters")
    parity = json.loads((out / "parity.json").read_text())
    assert parity == found["parity"] and parity["status"] == "passed" and parity["relative_difference"] <= 1e-5
    assert len({*parity["tokens"]}) == parity["texts"] == 8 and parity["rounding"] < 1e-5
    with safe_open(out / "model.safetensors", "pt") as file:
        names = {*file.keys()}
    assert "score.weight" in names and "lm_head.weight" not in names and not any("lora" in name for name in names)


def test_bfloat16_is_compared_as_it_is_stored_and_a_wrong_folder_fails(make, tmp_path, refused):
    run, out = tmp_path / "run", tmp_path / "hf"
    run_reward(make("reward", train={"epochs": 1, "learning_rate": 0.03}), run)
    main(["export", str(run), "--out", str(out), "--dtype", "bfloat16"])
    parity = json.loads((out / "parity.json").read_text())
    assert parity["status"] == "passed" and parity["rounding"] > 1e-5
    tensors = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    name = "model.layers.0.self_attn.o_proj.weight"
    save_file({**tensors, name: -tensors[name]}, out / "model.safetensors", metadata={"format": "pt"})
    model = load_reward_model(run)
    assert compare_scores(out, model, model)["status"] == "failed"
    assert json.loads((out / "parity.json").read_text())["status"] == "failed"
    for words, message in (
        (("--fp8",), "--fp8 has no meaning for a reward model"),
        (("--step", "3"), "--step has no meaning"),
        (("--tokenizer", str(tmp_path)), "holds no tokenizer.json"),
        ((), "exists already"),
    ):
        assert message in refused("export", run, "--out", tmp_path / "other" if words else out, *words)
    assert not (tmp_path / "other").exists()
