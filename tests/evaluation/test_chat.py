"""Assistants: what SFT and DPO made is asked in the layout it was trained in, and stops where its answers end."""

import json

import pytest
import tokenizers
import torch
import transformers
from evaluation_runs import official_files, run_of

from isoflop.alignment.dpo import run_dpo
from isoflop.alignment.recipe import DpoRecipe, SftRecipe
from isoflop.alignment.sft import run_sft
from isoflop.cli.main import main
from isoflop.evaluation.collect import write_answers
from isoflop.evaluation.recipe import EvalRecipe, GenerationSection, PromptSection
from isoflop.evaluation.run import Model
from isoflop.evaluation.tasks.catalogue import task
from isoflop.evaluation.tasks.task import Question
from isoflop.model.transformer import Transformer
from isoflop.recipe import from_tree
from isoflop.run import read_json_lines
from isoflop.serving.engine import Engine
from isoflop.tokens.bpe import BOS, EOS
from isoflop.tokens.chat import MARKED, PLAIN, ChatTemplate, Message, load_template
from isoflop.training.load_run import find_trained, load_model

ANSWER = "seed"
"""Right for every question of the made files."""
RECIPE = "[tasks]\nshots = {nq_open = 0}\n[generation]\nmax_tokens = 12\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return official_files(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_tokens, data):
    """A base that says nothing, SFT that answers right and stops, adapters that do, and DPO from SFT."""
    folder = tmp_path_factory.mktemp("runs")
    base = run_of(folder / "base", tiny_tokens)
    asked = [item.prefix + item.prompt for item in task("nq_open").read(data, 0).items]
    talks = [{"prompt": prompt, "response": ANSWER} for prompt in asked]
    pairs = [{"prompt": prompt, "chosen": ANSWER, "rejected": "thunder iron"} for prompt in asked]
    for name, rows in (("talks", talks), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    train = {"learning_rate": 0.02, "epochs": 8, "batch": 8, "device": "cpu", "threads": 1}
    answers = {"prompts": 2, "max_new_tokens": 4}
    said = {"train": [str(folder / "talks.jsonl")], "valid_fraction": 0.1}
    tree = {"initial": {"run": str(base)}, "data": said, "train": train, "answers": answers}
    run_sft(from_tree(tree, SftRecipe), folder / "sft")
    run_sft(from_tree({**tree, "adapter": {"rank": 4}}, SftRecipe), folder / "lora")
    said = {"train": [str(folder / "pairs.jsonl")], "valid_fraction": 0.1}
    train = {**train, "learning_rate": 1e-4, "epochs": 1}
    tree = {"initial": {"run": str(folder / "sft")}, "data": said, "train": train, "answers": answers}
    run_dpo(from_tree(tree, DpoRecipe), folder / "dpo")
    (folder / "eval.toml").write_text(RECIPE)
    return folder


def evaluate(runs, name, data, *words, out):
    files = ["--json", str(out / "found.json"), "--samples", str(out / "samples.jsonl")]
    main(["eval", str(runs / name), str(runs / "eval.toml"), *map(str, words), "--data", str(data), *files])
    (found,) = json.loads((out / "found.json").read_text())["runs"].values()
    return found, read_json_lines(out / "samples.jsonl")


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_an_assistant_is_asked_as_it_was_trained_and_stops_at_its_end_of_sequence(
    name, runs, data, tmp_path, monkeypatch
):
    asked, kept = [], Engine.add
    monkeypatch.setattr(Engine, "add", lambda self, ids, given: asked.append((ids, given)) or kept(self, ids, given))
    found, samples = evaluate(runs, name, data, "--tasks", "nq_open", out=tmp_path)
    assert found["settings"]["style"] == "chat" and found["settings"]["template"] == "deepseek-llm"
    items = task("nq_open").read(data, 0).items
    template = load_template(runs / name / "tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(runs / name / "tokenizer", split_special_tokens=False)
    assert len(asked) == len(items)
    for (ids, sampling), item in zip(asked, items, strict=True):
        turn = {"role": "user", "content": item.prefix + item.prompt}
        assert [*ids] == template.prompt_ids([Message(**turn)]).tolist()
        assert [*ids] == theirs.apply_chat_template([turn], add_generation_prompt=True, return_dict=False)
        assert sampling.stop_ids == template.stop_ids == (theirs.eos_token_id,)
    assert [row["outputs"] for row in samples] == [[ANSWER]] * len(items)  # the layout's blank is no part of it
    assert found["tasks"]["nq_open"]["exact_match"]["value"] == 1.0
    (answers,) = (runs / name / "evaluation").glob("nq_open.*.jsonl")
    n_answer = len(template.row([Message("user", "who?"), Message("assistant", ANSWER)]).is_target.nonzero()[0])
    assert {n for row in read_json_lines(answers) for n in row["n_tokens"]} == {n_answer}, "it did not stop"


def test_the_same_run_asked_in_plain_text_gets_no_layout(runs, data, tmp_path, monkeypatch):
    asked, kept = [], Engine.add
    monkeypatch.setattr(Engine, "add", lambda self, ids, given: asked.append((ids, given)) or kept(self, ids, given))
    found, _ = evaluate(runs, "sft", data, "prompt.style=text", "--tasks", "nq_open", "--limit", 3, out=tmp_path)
    assert found["settings"]["style"] == "text" and found["settings"]["template"] is None
    tokenizer = load_template(runs / "sft" / "tokenizer")
    item = task("nq_open").read(data, 0).items[0]
    assert tokenizer.decode(asked[0][0]) == item.prefix + item.prompt and asked[0][1].stop_ids == ()
    base, _ = evaluate(runs, "base", data, "--tasks", "nq_open", "--limit", 3, out=tmp_path)
    assert base["settings"]["style"] == "text"
    chat, _ = evaluate(runs, "base", data, "prompt.style=chat", "--tasks", "nq_open", "--limit", 3, out=tmp_path)
    assert chat["settings"]["style"] == "chat"


def test_an_option_is_scored_where_training_had_its_targets(runs, data, tmp_path):
    metrics = 'likelihood.metrics=["acc_mutual_info"]'
    evaluate(runs, "sft", data, metrics, "--tasks", "piqa", out=tmp_path)
    (answers,) = (runs / "sft" / "evaluation").glob("piqa.*.jsonl")
    template = load_template(runs / "sft" / "tokenizer")
    model = load_model(find_trained(runs / "sft"), device=torch.device("cpu"))
    items = task("piqa").read(data, 0).items
    for row in read_json_lines(answers)[:6]:
        item = items[row["item"]]
        for at, option in enumerate(item.options):
            ids, is_target = template.row([Message("user", item.context), Message("assistant", option.strip())])
            assert int(ids[-1]) in template.stop_ids and is_target[-1]
            is_target[-1] = False  # its end is not part of an option
            assert row["nats"][at] == pytest.approx(nats(model, ids, is_target), abs=1e-4)
            assert row["nats_tokens"][at] == is_target.sum()
            alone = [ids[0], *ids[is_target]]
            scored = [False] + [True] * (len(alone) - 1)
            assert row["unconditional"][at] == pytest.approx(nats(model, alone, scored), abs=1e-4)


def nats(model: Transformer, ids, is_target) -> float:
    with torch.no_grad():
        logits = model.logits(torch.tensor([[int(i) for i in ids]]))[0].float().log_softmax(-1)
    return sum(float(logits[at - 1, int(ids[at])]) for at in range(1, len(ids)) if is_target[at])


def test_rows_that_no_conversation_can_hold_are_named_and_the_others_scored(runs, data, tmp_path):
    folder = tmp_path / "odd"
    (folder / "piqa").mkdir(parents=True)
    (folder / "nq_open").mkdir()
    rows = read_json_lines(data / "piqa/valid.jsonl")[:20]
    rows[3]["sol2"] = " "
    rows[4]["goal"] = ""
    rows[5]["sol1"] = "broken \ud800 text"
    (folder / "piqa/valid.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "piqa/valid-labels.lst").write_text("1\n" * 20)
    questions = [{"question": f"who {at} \udfff" if at == 2 else f"who {at}", "answer": ["seed"]} for at in range(20)]
    (folder / "nq_open/NQ-open.dev.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in questions))
    found, samples = evaluate(runs, "sft", folder, "--tasks", "piqa,nq_open", out=tmp_path)
    counts = {name: (d["n_items"], d["n_skipped"], d["n_missing"]) for name, d in found["details"].items()}
    assert counts == {"piqa": (19, 1, 1), "nq_open": (19, 1, 0)}
    assert [row["problem"] for row in samples if "problem" in row] == ["option 2 has no tokens"]
    problem = found["details"]["piqa"]["problems"][0]
    assert problem.endswith("valid.jsonl:6: unpaired surrogates, which no tokenizer takes")
    assert found["tasks"]["piqa"]["acc"]["n"] == 18 and found["tasks"]["nq_open"]["exact_match"]["n"] == 19


def test_a_question_without_text_is_missing_in_a_chat_and_the_others_are_asked(runs):
    model = Model(runs / "sft", EvalRecipe(prompt=PromptSection(style="chat")))
    items = [(0, Question("a", "  ", [])), (1, Question("b", "who?", []))]
    rows = list(write_answers(model.engine, model.prompts, items, GenerationSection(max_tokens=2), "t"))
    assert rows[0] == {"item": 0, "n_cut": 0, "problem": "turn 1: empty question; drop the conversation"}
    assert rows[1]["item"] == 1 and len(rows[1]["outputs"]) == 1


@pytest.mark.parametrize(("source", "lead"), [(PLAIN, " "), (MARKED, "")])
def test_what_a_layout_puts_before_an_answer_is_known(source, lead, runs):
    backend = tokenizers.Tokenizer.from_file(str(runs / "base" / "tokenizer" / "tokenizer.json"))
    assert ChatTemplate(source, backend, name="t", names={"bos_token": BOS, "eos_token": EOS}).lead == lead


def test_an_adapter_run_is_evaluated_from_its_merged_folder_and_refused_by_name_elsewhere(runs, data, tmp_path, capsys):
    found, samples = evaluate(runs, "lora/merged", data, "--tasks", "nq_open", "--limit", 4, out=tmp_path)
    assert found["settings"]["style"] == "chat" and len(samples) == 4
    with pytest.raises(SystemExit) as stopped:
        evaluate(runs, "lora", data, "--tasks", "nq_open", out=tmp_path)
    assert stopped.value.code != 0 and f"give {runs / 'lora' / 'merged'}" in capsys.readouterr().err
