"""Values and texts equal those of lm-eval 0.4.13's Hugging Face backend, through the adapter and through our tasks."""

import json
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from evaluation_runs import CONFIG, FAMILIES, official_files, run_of

from isoflop.errors import DataError
from isoflop.evaluation.recipe import EvalRecipe, GenerationSection, LikelihoodSection, TasksSection
from isoflop.evaluation.run import choose, evaluate
from isoflop.evaluation.tasks.task import Choice, Passage, Question
from isoflop.interop.export_hf import export_run
from isoflop.run import read_json_lines

pytestmark = [
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed"),
    pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed"),
    pytest.mark.filterwarnings("ignore"),  # theirs
]

MODELS = {
    "dense": CONFIG,
    "latent_experts": replace(FAMILIES["v2_lite"], vocab_size=512, seq_len=192),
}
FORMS = {
    "multiple_choice": {
        "doc_to_text": "Question: {{goal}}\nAnswer:",
        "doc_to_choice": "{{[sol1, sol2]}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")],
    },
    "two_contexts": {
        "output_type": "multiple_choice",
        "doc_to_text": 1,
        "doc_to_choice": "{{[sol1 + ' and', sol2 + ' or']}}",
        "doc_to_target": "{{goal}}",
        "metric_list": [{"metric": "acc"}],
    },
    "loglikelihood": {
        "doc_to_text": "{{goal}} ",
        "doc_to_target": "{{sol1}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "loglikelihood_rolling": {
        "doc_to_text": "",
        "doc_to_target": "{{(goal + ' ' + sol2 + '\n') * 8}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "generate_until": {
        "doc_to_text": "Q: {{goal}}\nA:",
        "doc_to_target": "{{sol1}}",
        "generation_kwargs": {"until": ["\n\n", "z"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}
"""One task of each output type, over the same rows."""


@pytest.fixture(scope="module", params=MODELS)
def models(request, tmp_path_factory, tiny_tokens):
    """A random run, and the same weights behind lm-eval's Hugging Face backend."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    folder = tmp_path_factory.mktemp(request.param)
    run = run_of(folder / "run", tiny_tokens, config=MODELS[request.param])
    export_run(run, folder / "hf", parity=False)
    peer = huggingface.HFLM(pretrained=str(folder / "hf"), dtype="float32", device="cpu", batch_size=4)
    return run, peer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return official_files(tmp_path_factory.mktemp("official"))


def same(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) <= 1e-5 * max(1, abs(theirs))


def told(model, folder, kind):
    """What the model said to each document of a local YAML task."""
    evaluator, tasks = pytest.importorskip("lm_eval.evaluator"), pytest.importorskip("lm_eval.tasks")
    manager = tasks.TaskManager(include_path=str(folder), include_defaults=False)
    found = evaluator.simple_evaluate(
        model=model, tasks=[kind], task_manager=manager, log_samples=True, bootstrap_iters=0, verbosity="ERROR"
    )
    return [sample["resps"] for sample in found["samples"][kind]], found["results"][kind]


@pytest.mark.parametrize("kind", FORMS)
def test_the_adapter_gives_what_the_hugging_face_backend_gives(models, data, tmp_path, monkeypatch, kind):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    adapter = pytest.importorskip("isoflop.evaluation.lm_eval")
    run, peer = models
    form = {
        "task": kind,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data / "piqa/valid.jsonl")}},
        "test_split": "test",
        "output_type": kind,
        **FORMS[kind],
    }
    (tmp_path / f"{kind}.yaml").write_text(json.dumps(form), encoding="utf-8")  # JSON is YAML
    ours, our_results = told(adapter.IsoflopLM(run, device="cpu"), tmp_path, kind)
    theirs, their_results = told(peer, tmp_path, kind)
    assert len(ours) == len(theirs) == 24
    flat = [(a, b) for one, two in zip(ours, theirs) for a, b in zip(one, two, strict=True)]
    if kind == "generate_until":
        assert [a for a, _ in flat] == [b for _, b in flat] and any(b[0] for _, b in flat)
        return
    for (a,), (b,) in flat:
        if kind == "loglikelihood_rolling":
            assert same(float(a), float(b)), (a, b)
        else:
            assert same(float(a[0]), float(b[0])) and str(a[1]) == str(b[1]), (a, b)
    for name, value in their_results.items():
        if isinstance(value, float):
            assert our_results[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("name", ["piqa", "winogrande", "pile", "nq_open"])
def test_our_own_tasks_give_what_the_hugging_face_backend_gives(models, data, tmp_path, name):
    run, peer = models
    recipe = EvalRecipe(
        TasksSection((name,), str(data), shots={"nq_open": 2}),
        likelihood=LikelihoodSection(("acc_mutual_info",)),
        generation=GenerationSection(max_tokens=32),
    )
    (chosen,) = choose(recipe)
    found, _ = evaluate([str(run)], recipe)
    details = found["runs"][str(run)]["details"][name]
    answers = {row["item"]: row for row in read_json_lines(run / "evaluation" / details["answers"])}
    assert sorted(answers) == list(range(len(chosen.items)))
    for number, item in enumerate(chosen.items):
        answer = answers[number]
        if isinstance(item, Choice):
            contexts = item.contexts or (item.context,) * len(item.options)
            for at, (context, option) in enumerate(zip(contexts, item.options)):
                (given,), (alone,) = ([one] for one in ask(peer, (item.prefix + context, option), ("", option)))
                assert same(answer["nats"][at], given[0]) and answer["is_greedy"][at] == given[1]
                assert same(answer["unconditional"][at], alone[0])
        elif isinstance(item, Passage):
            (theirs,) = peer.loglikelihood_rolling([SimpleNamespace(args=(item.text,))], disable_tqdm=True)
            assert same(sum(answer["nats"]), theirs)
        else:
            assert isinstance(item, Question)
            wanted = {"until": [*item.stops], "max_gen_toks": 32, "do_sample": False}
            (theirs,) = peer.generate_until([SimpleNamespace(args=(item.prefix + item.prompt, wanted))], True)
            assert answer["outputs"] == [theirs]


def ask(peer, *pairs):
    return peer.loglikelihood([SimpleNamespace(args=pair) for pair in pairs], disable_tqdm=True)


def test_the_adapter_refuses_what_it_cannot_do(models):
    adapter = pytest.importorskip("isoflop.evaluation.lm_eval")
    model = adapter.IsoflopLM(models[0], device="cpu", batch_size=8)
    with pytest.raises(DataError, match=r"\['num_beams'\] mean nothing here"):
        model.generate_until([SimpleNamespace(args=("a", {"num_beams": 4}))])
    with pytest.raises(DataError, match="continuation '' has no tokens"):
        model.loglikelihood([SimpleNamespace(args=("a", ""))], disable_tqdm=True)
