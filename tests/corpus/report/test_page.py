import copy
import importlib.util
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from isoflop.corpus.build import build_corpus
from isoflop.corpus.document import SourceOptions
from isoflop.corpus.recipe import CorpusRecipe, SplitOptions
from isoflop.corpus.remix import MixOptions, MixStage, plan_mixture
from isoflop.corpus.report.page import corpus_page

NASTY = '<script>alert("x")</script> & <b>bold</b>'


class Checker(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = frozenset(["meta", "br", "line", "polyline", "path", "img"])

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    draw = random.Random(3)
    texts = [f"{NASTY} document {i} " + " ".join(f"word{draw.randint(0, 9999)}" for _ in range(120)) for i in range(60)]
    texts += [texts[0], texts[1] + " the end", "tiny"]
    lines = [json.dumps({"text": text, "lang": "en", "license": NASTY}) for text in texts]
    (folder / "docs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = SourceOptions(path=str(folder / "docs.jsonl"), domain="prose")
    build_corpus(CorpusRecipe(sources=(source,), split=SplitOptions(valid_fraction=0.2)), folder / "corpus")
    return folder / "corpus"


def test_the_page_has_every_section_is_well_formed_and_needs_nothing_else(built: Path) -> None:
    text = (built / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert not checker.open and "script" not in checker.seen
    assert {"funnel", "dropped", "duplicates", "lengths", "languages", "mixture", "kept", "files"} <= set(
        re.findall(r'<section id="([a-z]+)"', text)
    )
    assert not re.findall(r'(?:src|href)="(?!#)', text)


def test_text_of_documents_is_shown_and_never_becomes_markup(built: Path) -> None:
    text = (built / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in text and "<script" not in text


def test_names_from_outside_are_neither_markup_nor_mathematics(built: Path) -> None:
    text = (built / "report.json").read_text(encoding="utf-8")
    hostile = json.dumps('<svg onload=x>$\\frac{1}{0}$\u6cd5"')
    for name in ("prose", "en", "too_short", "near_duplicate"):
        text = text.replace(f'"{name}"', hostile)
    page = corpus_page(json.loads(text), title=NASTY)
    assert "<svg onload" not in page and "&lt;svg onload=x&gt;$\\frac{1}{0}$\u6cd5&#34;" in page
    checker = Checker()
    checker.feed(page)
    assert not checker.open and "script" not in checker.seen and "b" not in checker.seen


def test_without_matplotlib_the_page_has_no_charts_and_says_how_to_get_them(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = json.loads((built / "report.json").read_text(encoding="utf-8"))
    found = importlib.util.find_spec
    assert "<svg" in corpus_page(report) and "no charts" not in corpus_page(report)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else found(name))
    page = corpus_page(report)
    assert "<svg" not in page and "pip install isoflop[report]" in page
    assert "too_short" in page and "What was dropped, by rule" in page and re.search(r"prose: en: [\d,]+ bytes", page)


def test_the_report_counts_what_the_manifest_counts(built: Path) -> None:
    report = json.loads((built / "report.json").read_text(encoding="utf-8"))
    manifest = json.loads((built / "manifest.json").read_text(encoding="utf-8"))
    read, distinct, kept = report["stages"]
    assert [stage["name"] for stage in report["stages"]] == ["read", "duplicates", "filter"]
    assert read["kept"] == [["prose", "en", 63, read["kept"][0][3]]]
    assert distinct["kept"][0][2] == 61 and kept["kept"][0][2] == 60 == manifest["n_documents"]
    assert {(rule, documents) for rule, _, _, documents, _ in distinct["dropped"]} == {
        ("exact_duplicate", 1),
        ("near_duplicate", 1),
    }
    assert len(kept["samples"]["kept"]) == 20 and len(kept["samples"]["too_short"]) == 1
    assert report["duplicates"]["cluster_sizes"] == [[2, 1]]
    members = report["duplicates"]["examples"][0]["members"]
    assert len(members) == 2 and sum("the end" in member[5] or "document 1 " in member[5] for member in members) == 2
    near = distinct["samples"]["near_duplicate"][0]
    assert re.match(r"\d+% like docs\.jsonl/", near[4])
    assert sum(count for _, count in report["duplicates"]["similarities"]) == 1
    for stage in report["stages"]:
        assert sum(count for _, _, count in stage["lengths"]) == sum(row[2] for row in stage["kept"])


def test_a_curriculum_and_benchmarks_have_their_charts(built: Path) -> None:
    report = copy.deepcopy(json.loads((built / "report.json").read_text(encoding="utf-8")))
    options = MixOptions(train_gb=0.001, stages=(MixStage(0.9), MixStage(0.1)))
    report["manifest"]["mixture"] = plan_mixture({"prose": 50_000}, options)
    report["contamination"] = [{"benchmark": "quiz", "n_texts": 50, "n_found": 5, "n_documents": 3, "n_too_short": 2}]
    text = corpus_page(report, title="x")
    assert "Curriculum" in text and re.search(r"From 90% to 100% of training:\s+prose 100.0%", text)
    assert "quiz" in text and "10.0%" in text
