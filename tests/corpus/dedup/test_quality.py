"""Near-duplicates of real text: what is found, against the exact similarity of all pairs and the curve of LSH."""

import importlib.util

import pytest
from places import ROOT

from isoflop.corpus.dedup.options import DedupOptions

pytest.importorskip("pyarrow", reason="tables need the corpus extra")
pytest.importorskip("daft", reason="signatures need the corpus extra")

SHARED = ROOT.parent / "shared"

pytestmark = pytest.mark.skipif(not (SHARED / "data/pretrain").is_dir(), reason="real text lies beside the checkout")


@pytest.fixture(scope="module")
def quality():
    spec = importlib.util.spec_from_file_location("dedup_quality", ROOT / "benchmarks" / "dedup_quality.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def documents(quality):
    return quality.labelled_set(SHARED, 240)


def test_candidates_follow_the_curve_at_every_similarity(quality, documents, tmp_path):
    found = quality.measure(documents, tmp_path, DedupOptions(threshold=0.0))
    assert sum(row["n_pairs"] for row in found["by_similarity"] if row["low"] >= 0.3) > 100
    for row in found["by_similarity"]:
        # a rare pair may join by luck where none is expected: one pair is never too much
        slack = 3.5 * row["standard_error"] + 1.5 / row["n_pairs"]
        assert abs(row["found"] - row["expected"]) <= slack, row


def test_comparison_joins_nothing_below_the_threshold_and_misses_what_lsh_misses(quality, documents, tmp_path):
    found = quality.measure(documents, tmp_path, DedupOptions())
    assert found["n_wrong"] == 0 and found["precision"] > 0.98  # what chains join counts against the precision
    assert found["recall"] >= found["recall_expected"] - 3 * found["recall_error"] > 0.85
    kinds = found["found_by_kind"]
    assert kinds["exact"][0] == kinds["exact"][1] > 10 and kinds["edit 1%"][0] == kinds["edit 1%"][1]
    for kind in ("edit 20%", "edit 30%", "boilerplate", "translation"):
        assert kinds[kind][0] == 0, kind
