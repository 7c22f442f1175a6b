"""The commands train, extend and passkey from the command line, one after the other in one folder."""

import json
from pathlib import Path

import pytest

from isoflop.cli import main as cli
from isoflop.recipe import to_toml


def write(path: Path, tree: dict) -> str:
    path.write_text(to_toml(tree), encoding="utf-8")
    return str(path)


def test_train_extend_and_ask_from_the_command_line(tmp_path, tiny_tree, capsys):
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install isoflop[report]")
    train = {**tiny_tree["train"], "n_tokens": 2 * 128, "batch_tokens": 128, "warmup_steps": 0}
    base = {**tiny_tree, "model": {**tiny_tree["model"], "seq_len": 128}, "train": train}
    cli.main(["train", write(tmp_path / "train.toml", base), "--out", str(tmp_path / "short")])
    longer = {
        "extend": {"run": str(tmp_path / "short"), "seq_len": 256},
        "data": {},
        "train": {**train, "n_tokens": 2 * 256, "batch_tokens": 256, "schedule": "constant"},
        "validate": tiny_tree["validate"],
        "checkpoint": tiny_tree["checkpoint"],
    }
    recipe, plan = write(tmp_path / "extend.toml", longer), tmp_path / "plan.json"
    cli.main(["extend", recipe, "--dry-run", "--out", str(tmp_path / "long"), "--json", str(plan)])
    planned = json.loads(plan.read_text(encoding="utf-8"))
    assert (planned["steps"], planned["factor"], planned["original_seq_len"]) == (2, 2.0, 128)
    assert not (tmp_path / "long").exists()
    cli.main(["extend", recipe, "--out", str(tmp_path / "long")])
    arguments = ["--before", str(tmp_path / "short"), "--lengths", "128", "256", "--depths", "0", "1", "--trials", "2"]
    cli.main(["passkey", str(tmp_path / "long"), *arguments, "--max-tokens", "500", "--device", "cpu"])
    found = json.loads((tmp_path / "long/passkey/passkey.json").read_text(encoding="utf-8"))
    assert len(found["cells"]) == 8 and found["summary"]["perplexity_inside_after"] > 1
    assert (tmp_path / "long/passkey/passkey.svg").is_file() and (tmp_path / "long/passkey/passkey.png").is_file()
    assert "accuracy_inside_after" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["extend", "passkey"])
def test_a_folder_that_holds_no_run_is_refused(tmp_path, tiny_tree, refused, command):
    tree = {"extend": {"run": str(tmp_path / "gone"), "seq_len": 64}, "data": {}, "train": tiny_tree["train"]}
    target = write(tmp_path / "extend.toml", tree) if command == "extend" else str(tmp_path / "gone")
    assert "has no recipe.toml" in refused(command, target)
