"""What comes out answers and stops in transformers as in ours."""

import json

import numpy as np
import pytest
import torch
import transformers

from isoflop.alignment.answers import answer
from isoflop.alignment.sft import run_sft
from isoflop.alignment.start import open_start
from isoflop.cli.main import main
from isoflop.tokens.chat import Message
from isoflop.training.load_run import find_trained, load_model

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] | trim + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


@pytest.mark.parametrize("own", [False, True])
def test_the_exported_folder_answers_and_stops_in_transformers_as_in_ours(own, make, tmp_path, capsys):
    data = {}
    if own:
        (tmp_path / "own.jinja").write_text(LLAMA3)
        data = {"data": {"template": str(tmp_path / "own.jinja")}}
    run_sft(make(train={"epochs": 6, "learning_rate": 0.03}, **data), tmp_path / "run")
    main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "hf")])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    start = open_start(make(initial={"run": str(tmp_path / "run")}).initial)
    model = load_model(find_trained(tmp_path / "run"), device=torch.device("cpu"))
    stopped = []
    for question in ("say 3 stone", "say 9 paper window", "who?", "say 50 music music music"):
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert ids == start.template.prompt_ids([Message("user", question)]).tolist()
        (ours,) = answer(model, [np.array(ids)], stop_ids=start.template.stop_ids, max_new_tokens=24)
        found = theirs.generate(torch.tensor([ids]), max_new_tokens=24, pad_token_id=0)[0, len(ids) :].tolist()
        assert found == ours.ids + ([start.template.stop_ids[0]] if ours.stopped else [])
        stopped.append(ours.stopped)
    assert any(stopped)
    config = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert config["eos_token_id"] == start.template.stop_ids[0]


def test_every_command_of_alignment_runs_and_its_json_has_the_fixed_keys(base, talks, pairs, tmp_path, capsys):
    small = ["train.epochs=1", "train.batch=32", "train.learning_rate=0.01", "train.device=cpu", "train.threads=1"]
    for command, data in (("sft", talks), ("dpo", pairs), ("reward", pairs)):
        recipe = tmp_path / f"{command}.toml"
        recipe.write_text(
            f'[initial]\nrun = "{base}"\n[data]\ntrain = ["{data}"]\nvalid_fraction = 0.2\n'
            "[train]\nlearning_rate = 1e-3\nepochs = 1\nbatch = 8\n"
        )
        more = [] if command == "reward" else ["answers.prompts=5", "answers.max_new_tokens=8"]
        main([command, str(recipe), *small, *more, "--dry-run", "--json", str(tmp_path / "plan.json")])
        plan = json.loads((tmp_path / "plan.json").read_text())
        assert plan["steps"] >= 2 and plan["samples"]["n_train"] > 50
        narrow = ["adapter.rank=2", "--dry-run", "--json", str(tmp_path / "narrow.json")]
        main([command, str(recipe), *small, *more, *narrow])
        memory = json.loads((tmp_path / "narrow.json").read_text())["memory"]
        assert memory["optimizer_bytes"] < plan["memory"]["optimizer_bytes"] / 2  # of the adapters alone
        out = tmp_path / command
        main([command, str(recipe), *small, *more, "--out", str(out), "--json", str(tmp_path / "found.json")])
        found = json.loads((tmp_path / "found.json").read_text())
        keys = {"status", "step", "loss_nats", "validation"}
        keys |= {"sft": set(), "dpo": {"accuracy"}, "reward": {"accuracy"}}[command]
        keys |= set() if command == "reward" else {"stop_share", "repetition_ratio"}
        assert keys <= found.keys() and found["status"] == "finished"
        assert json.loads((out / "result.json").read_text())["loss_nats"] == found["loss_nats"]
        assert "finished" in capsys.readouterr().out


def test_an_adapter_run_exports_for_peft_and_its_base_is_named(make, tmp_path, capsys):
    run_sft(make(adapter={"rank": 2}, train={"epochs": 1}), tmp_path / "run")
    main(["export", str(tmp_path / "run"), "--adapter", "--base", "org/base", "--out", str(tmp_path / "peft")])
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base" and config["r"] == 2
    main(["export", str(tmp_path / "run" / "merged"), "--out", str(tmp_path / "hf")])
    assert "passed" in capsys.readouterr().out


def test_a_template_that_ends_answers_with_a_token_of_its_own_stops_there_in_transformers(base, tiny_tokens, tmp_path):
    import shutil

    import tokenizers

    from isoflop.interop.export_hf import export_run

    run = shutil.copytree(base, tmp_path / "run")
    (run / "tokenizer").mkdir(exist_ok=True)
    backend = tokenizers.Tokenizer.from_file(str(tiny_tokens / "tokenizer.json"))
    config = json.loads((tiny_tokens / "tokenizer_config.json").read_text())
    backend.save(str(run / "tokenizer" / "tokenizer.json"))
    (run / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    (run / "tokenizer" / "chat_template.jinja").write_text(LLAMA3.replace("eos_token", "bos_token"))
    export_run(run, tmp_path / "hf", parity=False)
    found = json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    assert found == sorted(backend.token_to_id(config[name]) for name in ("bos_token", "eos_token"))
