"""What an exported folder says about text: the same ids, BOS, a chat template, and a model that generates from text."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
import transformers
from interop_models import FAMILIES, build, export, make_run
from safetensors.torch import load_file

from isoflop.cli import main as cli
from isoflop.interop import tokenizer as files
from isoflop.interop.export_hf import open_run
from isoflop.interop.import_hf import import_folder
from isoflop.tokens.bpe import ASSISTANT, BOS, EOS, USER, Tokenizer
from isoflop.tokens.shards import TokenSet
from isoflop.training.pretrain.workload import run_pretrain

TEXT = "the tree and the stone\nwere here 1234 times before"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "who?"},
    {"role": "assistant", "content": "me"},
    {"role": "user", "content": "why?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokens):
    """A V3-style run with the tokens folder it was trained on, exported by the command, parity report included."""
    place = tmp_path_factory.mktemp("text")
    model = build(replace(FAMILIES["v3"], vocab_size=512))
    run = make_run(place / "run", model, data={"tokens": str(tiny_tokens)})
    cli.main(["export", str(run), "--out", str(place / "hf"), "--json", str(place / "found.json")])
    return place / "hf"


def test_the_folder_is_complete(folder):
    found = {path.name for path in folder.iterdir()}
    assert found == {
        "config.json",
        "generation_config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "parity.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    held = load_file(folder / "model-00001-of-00001.safetensors")
    assert index["weight_map"].keys() == held.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in held.values())


def test_the_report_is_on_held_out_documents_and_printed(folder, tiny_tokens):
    report = json.loads((folder / "parity.json").read_text())
    assert report["status"] == "passed" and report["text"] == "held-out documents of the run"
    assert report["greedy"] == {
        "prompts": 4,
        "prompt_tokens": 32,
        "steps": 64,
        "equal": 4,
        "first_difference": [None] * 4,
        "left_out_for_ties": 0,
    }
    assert json.loads((folder.parent / "found.json").read_text())["parity"] == report


def test_transformers_reads_the_same_ids_and_begins_with_bos(folder, tiny_tokens):
    ours, theirs = TokenSet.open(tiny_tokens).tokenizer, transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs(TEXT).input_ids == [ours.bos_id, *ours.encode(TEXT)]
    assert theirs.decode(ours.encode(TEXT)) == TEXT
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    config = json.loads((folder / "generation_config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (ours.bos_id, ours.eos_id)


def test_text_in_text_out_through_the_pipeline(folder):
    pipe = transformers.pipeline("text-generation", model=str(folder), dtype=torch.float32)
    (found,) = pipe(TEXT, max_new_tokens=5, do_sample=False)
    assert found["generated_text"].startswith(TEXT)


def test_the_chat_template_is_the_published_layout(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert found == f"{BOS}Be brief.\n\nUser: who?\n\nAssistant: me{EOS}User: why?\n\nAssistant:"
    assert tokenizer.apply_chat_template(CHAT, tokenize=False).endswith("User: why?\n\n")


def test_a_vocabulary_with_v3_marks_gets_the_v3_template(folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "marked")
    backend = files.load(source)
    backend.add_special_tokens([USER, ASSISTANT])
    backend.save(str(source / "tokenizer.json"))
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "chat_template"}))
    (tmp_path / "out").mkdir()
    files.write(source, tmp_path / "out", seq_len=96)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    found = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    user, assistant = USER, ASSISTANT
    assert found == f"{BOS}Be brief.{user}who?{assistant}me{EOS}{user}why?{assistant}"


def test_a_template_that_is_there_stays(folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "own")
    (source / "chat_template.jinja").write_text("mine")
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "chat_template"}))
    (tmp_path / "out").mkdir()
    files.write(source, tmp_path / "out", seq_len=96)
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "mine"


def test_a_tokenizer_survives_import_and_export_and_ours_stays_ours(folder, tmp_path, tiny_tokens):
    import_folder(folder, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    assert Tokenizer.load(tmp_path / "run" / "tokenizer").sha256 == TokenSet.open(tiny_tokens).tokenizer.sha256
    assert open_run(tmp_path / "run").tokenizer == tmp_path / "run" / "tokenizer"


def test_a_run_without_a_tokenizer_exports_without_one_and_keeps_the_ids_of_an_import(tmp_path, caplog):
    run = make_run(tmp_path / "run", build(FAMILIES["mha"]))
    export(run, tmp_path / "hf")
    assert "has no tokenizer" in caplog.text and not (tmp_path / "hf" / "tokenizer.json").exists()
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["bos_token_id"] is config["eos_token_id"] is None
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "bos_token_id": 5, "eos_token_id": 6}))
    import_folder(tmp_path / "hf", tmp_path / "back")
    export(tmp_path / "back", tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (5, 6)


def test_a_trained_run_goes_out_and_comes_back_by_commands_alone(tmp_path, tiny_recipe, capsys):
    run_pretrain(tiny_recipe(), tmp_path / "run")
    cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "hf")])
    shown = capsys.readouterr().out
    assert "LlamaForCausalLM in" in shown and re.search(r"parity\.status +passed", shown)
    cli.main(["import", str(tmp_path / "hf"), "--out", str(tmp_path / "back"), "--parity"])
    assert re.search(r"parity\.status +passed", capsys.readouterr().out)
    assert json.loads((tmp_path / "back" / "parity.json").read_text())["text"] == "a passage that comes with isoflop"
    cli.main(["export", str(tmp_path / "back"), "--out", str(tmp_path / "again"), "--no-parity"])
    shard = "model-00001-of-00001.safetensors"
    assert (tmp_path / "hf" / shard).read_bytes() == (tmp_path / "again" / shard).read_bytes()
    assert not (tmp_path / "again" / "parity.json").exists()
