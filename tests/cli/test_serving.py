"""isoflop generate and isoflop chat from the command line, on a run of seconds."""

import io
import json
import subprocess
import sys

import pytest
import torch

from isoflop.cli import main as cli
from isoflop.recipe import to_toml
from isoflop.tokens.bpe import Tokenizer
from isoflop.training.load_run import find_trained, load_model


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, tiny_tree):
    folder = tmp_path_factory.mktemp("generate")
    latent = {"d_kv_latent": 8, "d_nope": 4, "d_rope": 4, "d_value": 4}
    model = {**tiny_tree["model"], "seq_len": 128, "d_head": 8, "latent": latent, "mtp_depth": 1}
    tree = {**tiny_tree, "model": model, "train": {**tiny_tree["train"], "n_tokens": 20 * 256, "batch_tokens": 256}}
    (folder / "recipe.toml").write_text(to_toml(tree), encoding="utf-8")
    cli.main(["train", str(folder / "recipe.toml"), "--out", str(folder / "run")])
    return folder / "run"


def generated(run, tmp_path, *arguments):
    out = tmp_path / "found.json"
    cli.main(["generate", str(run), *arguments, "--device", "cpu", "--json", str(out)])
    return json.loads(out.read_text(encoding="utf-8"))


def test_a_prompt_is_continued_as_the_model_would(tiny_run, tmp_path, tiny_tokens, capsys):
    found = generated(tiny_run, tmp_path, "--prompt", "the", "--max-tokens", "12", "--temperature", "0")
    tokenizer = Tokenizer.load(tiny_tokens)
    tokens = [tokenizer.bos_id, *tokenizer.encode("the")]
    model = load_model(find_trained(tiny_run), device=torch.device("cpu"))
    with torch.no_grad():
        for _ in range(12):
            tokens.append(model.logits(torch.tensor([tokens]))[0, -1, : tokenizer.n_tokens].argmax().item())
    one = found["completions"][0]
    assert one["ids"] == tokens[-12:] and one["text"] == tokenizer.decode(one["ids"])
    assert (one["prompt"], one["finish_reason"], one["n_tokens"], one["logprobs"]) == ("the", "length", 12, None)
    assert one["n_prompt_tokens"] == len(tokens) - 12
    assert found["tokens_per_s"] > 0 and found["acceptance"] is None
    assert one["text"] in capsys.readouterr().out


def test_a_file_of_prompts_is_answered_in_its_order_whatever_drafts(tiny_run, tmp_path):
    lines = [
        {"prompt": "one"},
        {"ids": [510, 5, 6]},
        {"messages": [{"role": "user", "content": "hello"}]},
        {"prompt": "one", "seed": 3},
        {"prompt": ""},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    common = ("--prompts", str(file), "--max-tokens", "20", "--seed", "3", "--logprobs", "2", "--top-p", "0.9")
    plain = generated(tiny_run, tmp_path, *common)
    done = plain["completions"]
    assert [one["prompt"] for one in done] == ["one", [510, 5, 6], lines[2]["messages"], "one", ""]
    assert done[0]["ids"] == done[3]["ids"] and done[4]["n_prompt_tokens"] == 1
    assert all(len(one["logprobs"]) == one["n_tokens"] == len(one["ids"]) for one in done)
    assert all(len(logprob["top"]) == 2 and logprob["raw"] <= 0 for one in done for logprob in one["logprobs"])
    alone = generated(tiny_run, tmp_path, "--prompt", "one", *common[2:])
    assert alone["completions"][0]["text"] == done[0]["text"]
    for draft in ("mtp", "lookup"):
        drafted = generated(tiny_run, tmp_path, *common, "--draft", draft)
        assert [one["ids"] for one in drafted["completions"]] == [one["ids"] for one in done]
        assert len(drafted["acceptance"]) == {"mtp": 1, "lookup": 4}[draft]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs either --prompt TEXT or --prompts FILE"),
        (["--prompt", "a", "--prompts", "b"], "needs either --prompt TEXT or --prompts FILE"),
        (["--prompt", "a " * 200], "more than the context of 128; shorten the prompt by"),
        (["--prompt", "a", "--temperature", "nan"], "temperature = nan must be at least 0"),
        (["--prompt", "a", "--top-p", "0"], "top_p = 0.0 must be above 0 and at most 1"),
        (["--prompt", "a", "--logprobs", "65"], "logprobs = 65 must be at least 0 and at most 64"),
        (["--prompt", "a", "--stop", ""], "stop[0] = '' must be text of 1 to 1024 bytes"),
        (["--prompt", "caf\udce9"], "prompt = 'caf\\udce9' must be text that UTF-8 can say"),
        (["--prompts", "gone.jsonl"], "--prompts gone.jsonl can't be read"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(tiny_run, refused, arguments, message):
    assert message in refused("generate", str(tiny_run), *arguments, "--device", "cpu")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: Expecting"),
        ('{"prompt": 3}', ":2: prompt = 3 must be text"),
        ('{"prompt": "a", "ids": [1]}', ":2: a line must be"),
        ('{"messages": []}', ":2: messages = [] must be a list of roles and contents"),
        ('{"messages": [{"role": "pirate", "content": "a"}]}', ":2: messages[0]"),
        ('{"ids": [9999]}', "prompt[0] = 9999 must be a token id"),
        ('{"ids": []}', "prompt: 0 tokens"),
        ('{"prompt": "a", "seed": -1}', "seed = -1 must be at least 0"),
        ('{"prompt": "a \\ud800"}', ":2: prompt = 'a \\ud800' must be text that UTF-8 can say"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', ":2: messages"),
    ],
    ids=str,
)
def test_a_bad_line_is_named(tiny_run, tmp_path, refused, line, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line + "\n", encoding="utf-8")
    assert message in refused("generate", str(tiny_run), "--prompts", str(file), "--device", "cpu")


def test_a_run_without_tokenizer_takes_ids_and_refuses_text(tiny_run, tmp_path, refused):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "checkpoints").symlink_to(tiny_run / "checkpoints")
    recipe = (tiny_run / "recipe.toml").read_text(encoding="utf-8")
    lines = [line for line in recipe.splitlines() if not line.startswith("tokens = ")]
    (copy / "recipe.toml").write_text("\n".join(lines), encoding="utf-8")
    assert "has no tokenizer" in refused("generate", str(copy), "--prompt", "a", "--device", "cpu")
    file = tmp_path / "ids.jsonl"
    file.write_text('{"ids": [1, 2, 3]}', encoding="utf-8")
    found = generated(copy, tmp_path, "--prompts", str(file), "--max-tokens", "4")
    assert found["completions"][0]["text"] is None and len(found["completions"][0]["ids"]) == 4
    assert "chat needs a tokenizer" in refused("chat", str(copy), "--device", "cpu")


def test_a_half_written_checkpoint_is_refused(tiny_run, tmp_path, refused):
    copy = tmp_path / "torn"
    (copy / "checkpoints").mkdir(parents=True)
    (copy / "recipe.toml").write_text((tiny_run / "recipe.toml").read_text(encoding="utf-8"), encoding="utf-8")
    newest = sorted((tiny_run / "checkpoints").iterdir())[-1]
    (copy / "checkpoints" / newest.name).mkdir()
    for file in newest.iterdir():
        data = file.read_bytes()
        (copy / "checkpoints" / newest.name / file.name).write_bytes(data[: len(data) // 2])
    assert "all 1 checkpoints in" in refused("generate", str(copy), "--prompt", "a", "--device", "cpu")


def talk(monkeypatch, capsys, run, lines, *arguments):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    cli.main(["chat", str(run), "--device", "cpu", "--max-tokens", "8", *arguments])
    return capsys.readouterr().out


def test_a_base_model_goes_on_with_the_text_and_the_same_seed_says_the_same(tiny_run, monkeypatch, capsys):
    lines = ["the first", "/retry", "/reset", "the first", "/quit", "never read"]
    out = talk(monkeypatch, capsys, tiny_run, lines, "--seed", "4")
    head, *answers = out.split("\n", 1)[0], *out.split("\n", 1)[1].removesuffix("\n").split("\n")
    assert head.startswith("plain text with")
    text = "\n".join(answers)
    third = len(text) // 3
    assert text[:third] == text[third + 1 : 2 * third + 1] == text[2 * third + 2 :]


def test_bytes_that_are_no_utf8_are_read_as_they_are_spelled(tiny_run):
    words = [sys.executable, "-m", "isoflop", "chat", str(tiny_run), "--device", "cpu", "--max-tokens", "2"]
    ended = subprocess.run(words, input=b"caf\xe9\nthe\n", capture_output=True, timeout=120)
    assert (ended.returncode, b"Traceback" in ended.stderr) == (0, False), ended.stderr


def test_settings_are_shown_changed_and_checked(tiny_run, monkeypatch, capsys):
    lines = ["/set temperature 0", "/show", "/set temperature hot", "/set top_p 2", "/set colour red"]
    out = talk(monkeypatch, capsys, tiny_run, [*lines, "/retry", "/help", "/nonsense"], "--style", "chat")
    assert "temperature         0" in out and "/set temperature hot: not a number; the value now is 0" in out
    assert "top_p = 2.0 must be above 0 and at most 1" in out and "there is no such setting" in out
    assert "nothing was said yet" in out and "/nonsense is not a command" in out and out.count("/retry again") == 3
