"""Files that the documentation names exist."""

import re

import pytest
from places import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
NAMED = re.compile(r"`((?:[a-z_0-9-]+/)+[a-z_0-9-]+\.(?:py|sh))`")
"""A path between backticks, in the checkout or the package. The log is history: it may name what is gone."""


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=lambda path: path.name)
def test_named_files_exist(page):
    named = set(NAMED.findall(page.read_text(encoding="utf-8")))
    missing = sorted(name for name in named if not any((at / name).exists() for at in (ROOT, ROOT / "isoflop")))
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_start_page_links_every_page_once():
    docs = ROOT / "docs"
    links = re.findall(r"\]\(([^)#]+\.md)\)", (docs / "README.md").read_text(encoding="utf-8"))
    pages = {
        str(path.relative_to(docs))
        for path in (*docs.glob("*.md"), *docs.glob("keys/*.md"))
        if path.name != "README.md"
    }
    assert sorted(link for link in links if not link.startswith("..")) == sorted({*pages, "studies/README.md"})
