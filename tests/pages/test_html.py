"""Pages: every value is escaped, a forgotten value is an error, numbers are readable, templates are shipped."""

import re
import tomllib
from pathlib import Path

import pytest
from jinja2 import UndefinedError

import isoflop
from isoflop.pages.html import _environment, decimal, duration, page, scientific, shape, show, size

PACKAGE = Path(isoflop.__file__).parent
TEMPLATES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.html"))
HOSTILE = '<script>alert("x")</script>&'


def rendered(text, **values):
    source = '{% import "pages/macros.html" as ui with context %}' + text
    return _environment().from_string(source).render(contents=[], pictures={}, **values)


def test_numbers_are_written_for_readers():
    assert decimal(1.68771) == "1.688" and decimal(0.0) == "0"
    assert decimal(None) == decimal(float("nan")) == show(None) == "\u2013"
    assert (
        rendered("{{ x|scientific }}", x=3.2e12) == '<span class="nw">3.2&thinsp;\u00d7&thinsp;10<sup>12</sup></span>'
    )
    assert decimal(3.2e12) == scientific(3.2e12) and scientific(0) == "0"
    assert [duration(x) for x in (4.25, 45, 600, 9000, None)] == ["4.2 s", "45 s", "10.0 min", "2.5 h", "\u2013"]
    assert [size(x) for x in (999, 12.34e6, 4.56e9)] == ["0.999 kB", "12.3 MB", "4.56 GB"]
    assert [show(0.0123, kind) for kind in ("percent", "percent 1", "signed")] == ["1.23%", "1.2%", "+1.23%"]
    assert [show(x) for x in (True, 12345, [1, "a"], {"a": 1})] == ["yes", "12,345", "1, a", "a: 1"]
    assert shape(3, 64) == "3 \u00d7 64" and shape(None, 64) is None


@pytest.mark.parametrize(
    "piece",
    [
        "{{ x }}",
        "{{ x|auto }}{{ [x]|auto }}",
        "{{ {x: x}|auto }}",
        "{{ ui.table([(x, 0), (x, 0, 'auto')], [[x]]) }}",
        "{{ ui.facts([(x, x)]) }}",
        "{{ ui.tiles([(x, x, x)]) }}",
        "{{ ui.bullets([x]) }}",
        "{{ ui.legend({x: '#000'}) }}",
        "{% call ui.folded(x) %}{{ x }}{% endcall %}",
        "{% call ui.section('a', x) %}{{ 3.2e12|scientific ~ x }}{% endcall %}",
    ],
)
def test_no_piece_of_a_page_turns_values_into_markup(piece):
    text = rendered(piece, x=HOSTILE)
    assert "<script" not in text and "&lt;script&gt;" in text and "&amp;lt;" not in text


def test_one_line_of_all_templates_trusts_a_value_and_it_is_a_picture():
    lines = [line for name in TEMPLATES for line in (PACKAGE / name).read_text(encoding="utf-8").splitlines()]
    trusted = [line.strip() for line in lines if re.search(r"\|\s*safe|autoescape", line)]
    assert trusted == ["<figure>{{ pictures[name]|safe }}"]


def test_tables_and_facts_without_content_are_absent():
    assert rendered("{{ ui.table([('a', 0)], []) }}{{ ui.bullets([]) }}{{ ui.figure('x') }}").strip() == ""
    assert rendered("{{ ui.facts([('a', none), ('b', '')]) }}").strip() == ""
    assert "<dd>0</dd>" in rendered("{{ ui.facts([('a', 0)]) }}")
    assert rendered("{% call ui.section('a', 'A') %}  {% endcall %}{{ contents }}").strip() == "[]"


def test_a_value_that_nobody_gave_is_an_error():
    with pytest.raises(UndefinedError, match="'stages' is undefined"):
        page("corpus/report/page.html", title="x", pictures={})


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_compiles_and_is_package_data(name):
    _environment().get_template(name)
    data = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert "**/*.html" in data["tool"]["setuptools"]["package-data"]["isoflop"]
