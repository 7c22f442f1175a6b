"""Prompts, options, worked examples and grades equal those that lm-eval 0.4.13 makes of the same rows."""

import json
import random
import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from places import SHARED

from isoflop.evaluation.tasks import bbh, gsm8k
from isoflop.evaluation.tasks.catalogue import task
from isoflop.evaluation.tasks.chinese import texts
from isoflop.evaluation.tasks.files import json_lines, members, read_text, table
from isoflop.evaluation.tasks.task import Choice, Question

EVAL = SHARED / "eval"
pytestmark = [
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed"),
    pytest.mark.skipif(not EVAL.is_dir(), reason="official files lie beside the checkout"),
]


@dataclass
class Form:
    """A task's YAML, with its own templates."""

    config: dict

    def render(self, key, row):
        from jinja2 import Environment

        template = self.config[key]
        if isinstance(template, str) and "{" not in template and template in row:
            return row[template]
        environment = Environment(keep_trailing_newline=True, autoescape=False)
        return environment.from_string(template).render(**row)

    def shot(self, row, target=None):
        said = self.render("doc_to_target", row) if target is None else target
        between = self.config.get("target_delimiter", " ")
        return self.render("doc_to_text", row) + between + said + self.config.get("fewshot_delimiter", "\n\n")


def form(name):
    yaml = pytest.importorskip("yaml")

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    spec = find_spec("lm_eval")
    assert spec and spec.origin
    path = Path(spec.origin).parent / "tasks" / name
    config = yaml.load(path.read_text(encoding="utf-8"), Loader)
    if "include" in config:
        config = {**form(str(Path(name).parent / config["include"])).config, **config}
    return Form(config)


def rows_of(path):
    return [row for _, row in json_lines(path)]


def test_piqa():
    lm = form("piqa/piqa.yaml")
    for item, row in zip(task("piqa").read(EVAL, 0).items, rows_of(EVAL / "piqa/valid.jsonl"), strict=True):
        assert isinstance(item, Choice) and item.context == lm.render("doc_to_text", row)
        assert item.options == (f" {row['sol1']}", f" {row['sol2']}")


def test_arc_easy():
    lm = form("arc/arc_easy.yaml")
    for item, row in zip(task("arc_easy").read(EVAL, 0).items, rows_of(EVAL / "arc/arc_easy.jsonl"), strict=True):
        doc = {"question": row["query"].removeprefix("Question: "), "choices": {"text": row["choices"]}}
        assert isinstance(item, Choice) and item.context == lm.render("doc_to_text", doc)


def test_openbookqa():
    lm = form("openbookqa/openbookqa.yaml")
    path = EVAL / "openbookqa/test.tsv"
    rows = [row for _, row in table(path, read_text(path), header=True, delimiter="\t")]
    for item, row in zip(task("openbookqa").read(EVAL, 0).items, rows, strict=True):
        assert isinstance(item, Choice)
        assert item.context == lm.render("doc_to_text", {"question_stem": row["Question Stem"]})
        assert "".join(f"({name}){text} " for name, text in zip("ABCD", item.options)).strip() == row["Choices"].strip()


def test_hellaswag():
    pytest.importorskip("datasets")
    peer = import_module("lm_eval.tasks.hellaswag.utils")
    for item, row in zip(task("hellaswag").read(EVAL, 0).items, rows_of(EVAL / "hellaswag/hellaswag_val.jsonl.gz")):
        assert isinstance(item, Choice)
        assert item.options == tuple(f" {peer.preprocess(ending)}" for ending in row["endings"])
        plain = peer.preprocess(f"{row['activity_label']}: {row['ctx']}")
        assert item.context.lower().split() == plain.lower().split()


def test_winogrande():
    peer = import_module("lm_eval.tasks.winogrande.preprocess_winogrande")
    for item in task("winogrande").read(EVAL, 0).items[:100]:
        assert isinstance(item, Choice)
        first, second = item.contexts
        n = next(i for i, (a, b) in enumerate(zip(first + "\0", second + "\0")) if a != b)
        doc = {"sentence": f"{first[:n]}_ {item.options[0].strip()}", "option1": first[n:], "option2": second[n:]}
        assert list(item.contexts) == peer.doc_to_choice(doc)
        assert item.options[0] == f" {peer.doc_to_target(doc)}"


def test_mmlu_with_its_worked_examples():
    found = task("mmlu").read(EVAL, 5).items
    for subject in ("anatomy", "high_school_us_history", "college_mathematics"):
        lm = form(f"mmlu/default/mmlu_{subject}.yaml")
        files = {p.stem: (p, t) for split in ("dev", "test") for p, t in
                 members(EVAL / "mmlu", "data.tar.gz", f"data/mmlu/{split}", ".csv")}  # fmt: skip
        docs = {}
        for split in ("dev", "test"):
            rows = [row for _, row in table(*files[f"{subject}_{split}"], header=False)]
            docs[split] = [{"question": row[0], "choices": row[1:5], "answer": row[5]} for row in rows]
        prefix = lm.config["description"] + "".join(lm.shot(doc, doc["answer"]) for doc in docs["dev"][:5])
        items = [item for item in found if item.group == subject]
        assert [item.prefix for item in items] == [prefix] * len(docs["test"])
        assert [i.context for i in items if isinstance(i, Choice)] == [
            lm.render("doc_to_text", d) for d in docs["test"]
        ]


def test_cmmlu_with_its_worked_examples():
    found = task("cmmlu").read(EVAL, 5).items
    for subject in texts("cmmlu")["subjects"]:
        lm = form(f"cmmlu/cmmlu_{subject}.yaml")
        items = [item for item in found if item.group == subject]
        assert all(item.prefix.startswith(lm.config["description"]) for item in items)
    lm = form("cmmlu/cmmlu_anatomy.yaml")
    files = {p.parts[-2]: (p, t) for split in ("dev", "test") for p, t in
             members(EVAL / "cmmlu", "data.tar.gz", f"data/{split}", "/anatomy.csv")}  # fmt: skip
    docs = {split: [row for _, row in table(*files[split], header=True)] for split in files}
    items = [item for item in found if item.group == "anatomy"]
    assert [i.context for i in items if isinstance(i, Choice)] == [lm.render("doc_to_text", d) for d in docs["test"]]
    shown = "".join(lm.shot(doc, doc["Answer"]) for doc in docs["dev"][:5])
    assert items[0].prefix == lm.config["description"] + shown


def test_nq_open_triviaqa_drop_gsm8k_humaneval():
    lm = form("nq_open/nq_open.yaml")
    items = task("nq_open").read(EVAL, 5).items
    docs = rows_of(EVAL / "nq_open/NQ-open.dev.jsonl")
    shown = rows_of(EVAL / "nq_open/NQ-open.efficientqa.dev.1.1.jsonl")[:5]
    assert [i.prompt for i in items if isinstance(i, Question)] == [lm.render("doc_to_text", d) for d in docs]
    assert items[0].prefix == lm.config["description"] + "".join(lm.shot(d, d["answer"][0]) for d in shown)
    lm = form("triviaqa/default.yaml")
    docs = [{"question": r["context"][10:-8]} for r in rows_of(EVAL / "triviaqa/triviaqa_sm_sub.jsonl.gz")]
    items = task("triviaqa").read(EVAL, 0).items
    assert [i.prompt for i in items if isinstance(i, Question)] == [lm.render("doc_to_text", d) for d in docs]
    lm = form("gsm8k/gsm8k.yaml")
    items, docs = task("gsm8k").read(EVAL, 5).items, rows_of(EVAL / "gsm8k/test.jsonl")
    assert [i.prompt for i in items if isinstance(i, Question)] == [lm.render("doc_to_text", d) for d in docs]
    assert items[0].prefix == "".join(lm.shot(d) for d in rows_of(EVAL / "gsm8k/train.jsonl.gz")[:5])
    lm = form("humaneval/humaneval.yaml")
    items, docs = task("humaneval").read(EVAL, 0).items, rows_of(EVAL / "humaneval/HumanEval.jsonl.gz")
    assert [i.prompt for i in items if isinstance(i, Question)] == [lm.render("doc_to_text", d) for d in docs]


def test_mbpp():
    lm = form("mbpp/mbpp.yaml")
    docs = {str(row["task_id"]): row for row in rows_of(EVAL / "mbpp/mbpp.jsonl")}
    items = task("mbpp").read(EVAL, 3).items
    assert [i.prompt for i in items if isinstance(i, Question)] == [lm.render("doc_to_text", docs[i.id]) for i in items]
    assert items[0].prefix == "".join(lm.shot(docs[i], docs[i]["code"] + "\n[DONE]") for i in "234")


def test_bbh_prompts_are_those_of_lm_eval_up_to_its_worked_examples():
    found = {item.group: item for item in task("bbh").read(EVAL, 3).items if isinstance(item, Question)}
    assert len(found) == 27
    same = 0
    for name, item in found.items():
        lm = form(f"bbh/cot_fewshot/{name}.yaml")
        shown = "".join(lm.shot(doc) for doc in lm.config["fewshot_config"]["samples"])
        same += item.prefix == lm.config["description"] + shown
        rows = json.loads(next(t for p, t in members(EVAL / "bbh", "bbh.tar.gz", "bbh", f"/{name}.json")))["examples"]
        assert item.prompt == lm.render("doc_to_text", rows[-1])
    assert same == 26  # the peer has a line break for a blank in sports_understanding


def test_stop_texts_are_those_of_lm_eval():
    for name, path in {
        "triviaqa": "triviaqa/default.yaml",
        "nq_open": "nq_open/nq_open.yaml",
        "drop": "drop/default.yaml",
        "gsm8k": "gsm8k/gsm8k.yaml",
        "humaneval": "humaneval/humaneval.yaml",
        "mbpp": "mbpp/mbpp.yaml",
        "bbh": "bbh/cot_fewshot/_cot_fewshot_template_yaml",
        "math": "minerva_math/minerva_math_algebra.yaml",
    }.items():
        item = task(name).read(EVAL, 0).items[0]
        assert isinstance(item, Question) and list(item.stops) == form(path).config["generation_kwargs"]["until"], name


def test_drop_is_graded_as_by_lm_eval():
    peer = import_module("lm_eval.tasks.drop.utils")
    generator = random.Random(0)
    grade = task("drop").grade
    assert grade is not None
    words = [
        "the",
        "12",
        "12.0",
        "1,000",
        "nine-teen",
        "Mr.",
        "yards,",
        "7",
        "touchdowns",
        "A",
        "sixth",
        "Terminal",
        "2014",
    ]
    for _ in range(500):
        golds = tuple(
            tuple(" ".join(generator.choices(words, k=generator.randint(1, 3))) for _ in range(generator.randint(1, 2)))
            for _ in range(2)
        )
        output = " ".join(generator.choices(words, k=generator.randint(0, 4))).replace(".", "")
        expected = peer.process_results({"answers": golds}, [output])
        assert grade(Question("1", "", golds), output) == pytest.approx(expected), (golds, output)


def test_gsm8k_and_bbh_take_the_answer_that_lm_eval_takes():
    outputs = [
        "#### 72",
        "so $1,234.50.\n#### 1,234.5.",
        "it is 5 or 7.",
        "#### -3 and 4",
        "nothing",
        "x 1/2 $29.00",
        "-5",
    ]
    for settings in form("gsm8k/gsm8k.yaml").config["filter_list"]:
        options = settings["filter"][0]
        ours = gsm8k.strict if settings["name"] == "strict-match" else gsm8k.flexible
        for output in outputs:
            found = re.findall(options["regex_pattern"], output)
            expected = found[options.get("group_select", 0)] if found else ""
            if isinstance(expected, tuple):
                expected = next((part for part in expected if part), "")
            assert ours(output) == expected.strip(), (settings["name"], output)
    (settings,) = form("bbh/cot_fewshot/_cot_fewshot_template_yaml").config["filter_list"]
    for output in ("So the answer is (B).", "the answer is True", "the answer is a. the answer is b.", "none"):
        found = re.findall(settings["filter"][0]["regex_pattern"], output)
        assert bbh.extract(output) == (found[0].strip() if found else "[invalid]")
