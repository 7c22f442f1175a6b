"""Report: one self-contained page, verdict first, everything escaped, absent parts absent."""

import re
from html.parser import HTMLParser

import pytest
from synthetic_study import make_corpus_manifest, make_metrics, make_study, make_tokens_manifest

from isoflop.errors import DataError
from isoflop.scaling.report.page import write_report

pytest.importorskip("matplotlib", reason="the report needs matplotlib: pip install isoflop[report]")

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Balance(HTMLParser):
    """Collects tags that are closed in the wrong order, ids that occur twice, and every address."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.ids, self.addresses = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("href", "src", "xlink:href"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    records, laws, plan, score = make_study()
    path = write_report(
        tmp_path_factory.mktemp("report") / "report.html",
        records=records,
        laws=laws,
        plan=plan,
        score=score,
        corpus_manifest=make_corpus_manifest(),
        tokens_manifest=make_tokens_manifest(),
        ladder={"workers": 2, "wall_hours": 0.1, "warnings": ["a warning of the ladder"]},
        target_metrics=make_metrics(),
        commands=["make demo"],
        title="Full study",
    )
    return path.read_text(encoding="utf-8")


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of the time and is tested beside the figures."""
    monkeypatch.setattr("isoflop.scaling.report.page.figures_of", lambda *_: {})


def text_of(page):
    return re.sub(r"<[^>]+>", " ", re.sub(r"<(style|svg).*?</\1>", "", page, flags=re.DOTALL))


def test_page_is_well_formed_and_needs_nothing_else(full):
    found = Balance()
    found.feed(full)
    assert found.wrong == [] and found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in found.addresses)
    assert {address[1:] for address in found.addresses if address.startswith("#")} <= set(found.ids)
    assert "<script" not in full and "@import" not in full
    assert not re.search(r"url\((?!#)", full)


def test_verdict_comes_first_with_numbers_and_interval(full):
    text = text_of(full)
    assert "The prediction was 0.30% off, inside its 90% interval" in text
    assert text.index("The prediction was") < text.index("The sweep")
    assert "6.25" in text and "+0.30%" in text


def test_sections_tell_the_whole_story_in_order(full):
    names = re.findall(r'<section id="([a-z]+)">', full)
    assert names == [
        *("data", "sweep", "laws", "allocation", "hyper", "plan", "target"),
        *("savings", "caveats", "conventions", "reproduce"),
    ]
    assert full.count("<svg") == 7
    text = text_of(full)
    for fact in ("a warning of the ladder", "Diverged runs: 1", "no causal halving", "make demo", "held out"):
        assert fact in text, fact


def test_what_was_not_given_is_absent(tmp_path, no_figures):
    records, laws, _, _ = make_study(target=False, hyper=False)
    page = write_report(tmp_path / "r.html", records=records).read_text(encoding="utf-8")
    assert "runs finished, no law fitted yet" in page
    assert re.findall(r'<section id="([a-z]+)">', page) == ["sweep", "savings", "caveats", "conventions", "reproduce"]
    page = write_report(tmp_path / "r.html", records=[], laws=laws).read_text(encoding="utf-8")
    assert 'id="allocation"' in page and 'id="sweep"' not in page


@pytest.mark.parametrize("kept", [["surface"], ["lstar", "parabola"]])
def test_laws_of_one_kind_still_give_a_report(tmp_path, kept):
    records, laws, plan, score = make_study(hyper=False)
    thin = {key: value for key, value in laws.items() if key in ("law_set", "scale", "loss", *kept)}
    page = write_report(tmp_path / "r.html", records=records, laws=thin, plan=plan, score=score)
    assert "The prediction was 0.30% off" in page.read_text(encoding="utf-8")


def test_a_missed_interval_is_said_plainly(tmp_path, no_figures):
    records, laws, plan, score = make_study(hyper=False)
    score |= {"interval": [1.0, 1.1], "inside_interval": False}
    page = write_report(tmp_path / "r.html", records=records, laws=laws, plan=plan, score=score)
    text = page.read_text(encoding="utf-8")
    assert "outside its 90% interval" in text and 'class="verdict bad"' in text


def test_a_plan_without_a_run_is_not_called_measured(tmp_path, no_figures):
    records, laws, plan, _ = make_study(target=False, hyper=False)
    page = write_report(tmp_path / "r.html", records=records, laws=laws, plan=plan).read_text(encoding="utf-8")
    assert "Predicted, not yet measured" in page and 'class="verdict"' in page


def test_everything_from_outside_is_escaped(tmp_path, no_figures):
    evil = '<script>alert("x")</script>&'
    records, laws, plan, score = make_study(hyper=False)
    for row in records:
        row |= {"run_id": evil, "device": evil, "commit": evil, "conventions": {evil: evil}}
    laws |= {"warnings": [evil], "conventions": {"flops": evil}}
    plan |= {"warnings": [evil]}
    corpus = make_corpus_manifest() | {"held_out": [evil], "drops": {evil: {evil: 1}}, "licenses": {evil: evil}}
    page = write_report(
        tmp_path / "r.html",
        records=records,
        laws=laws,
        plan=plan,
        score=score | {"predicted_at": evil},
        corpus_manifest=corpus,
        commands=[evil],
        title=evil,
    ).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;&amp;") > 10


def test_no_records_and_no_laws_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match="run `isoflop sweep` first"):
        write_report(tmp_path / "r.html", records=[])
    assert not (tmp_path / "r.html").exists()


def test_the_price_of_sharing_is_stated_where_controls_measured_it(tmp_path, no_figures):
    records, laws, _, _ = make_study(target=False)
    cell = next(row for row in records if row["kind"] == "cell")
    control = {
        **cell,
        "run_id": "alone",
        "kind": "control",
        "trunk_id": "",
        "bits_per_byte": cell["bits_per_byte"] / 1.02,
    }
    write_report(tmp_path / "page.html", records=[*records, control], laws=laws)
    assert "put the regret of sharing at +2.00% of the loss" in text_of((tmp_path / "page.html").read_text())
