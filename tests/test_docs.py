"""Files that the documentation names exist."""

import re

import pytest
from places import ROOT

PAGES = [path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")) if path.name != "log.md"]
NAMED = re.compile(r"`((?:[a-z_0-9-]+/)+[a-z_0-9-]+\.(?:py|sh))`")
"""A path between backticks, in the checkout or the package. The log is history: it may name what is gone."""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_named_files_exist(page):
    named = set(NAMED.findall(page.read_text(encoding="utf-8")))
    missing = sorted(name for name in named if not any((at / name).exists() for at in (ROOT, ROOT / "isoflop")))
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []
