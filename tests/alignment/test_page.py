"""The page of a run of alignment, where a file beside it is damaged."""

import pytest

from isoflop.alignment.build import BEFORE
from isoflop.alignment.page import write_page
from isoflop.errors import DataError


def test_damaged_measurements_from_before_the_run_are_named(tmp_path):
    for text in ("{", "[]"):
        (tmp_path / BEFORE).write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"before\.json is .*; delete it and run the same command again"):
            write_page(tmp_path, "sft", None, {}, {})
