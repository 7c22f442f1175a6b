"""Ten undisturbed runs of the demo's kind, and three whose rate is multiplied by ten (benchmarks/schedules.py)."""

import json
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
from places import ROOT

from isoflop.corpus.build import build_corpus
from isoflop.corpus.recipe import CorpusRecipe
from isoflop.recipe import load_recipe
from isoflop.tokens.shards import TokensRecipe, build_tokens


@pytest.mark.slow
def test_ten_runs_end_where_half_of_them_said_and_only_disturbed_ones_are_flagged(tmp_path):
    with resources.as_file(resources.files("isoflop") / "presets") as presets:
        build_corpus(load_recipe(presets / "demo_corpus.toml", CorpusRecipe), tmp_path / "corpus")
        recipe = load_recipe(presets / "demo_tokens.toml", TokensRecipe)
        build_tokens(tmp_path / "corpus", tmp_path / "tokens", recipe)
    out = tmp_path / "found.json"
    command = [sys.executable, str(ROOT / "benchmarks/schedules.py"), "--tokens", str(tmp_path / "tokens")]
    subprocess.run([*command, "--out", str(tmp_path / "runs"), "--json", str(out)], check=True)
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    calm = [row for row in rows if not row["run"].startswith("x10")]
    fast = [row for row in rows if row["run"].startswith("x10")]
    assert len(calm) == 10 and [row["run"] for row in calm if row["flagged"]] == []
    assert all(0.4 < row["flagged"] <= 0.45 and "learning rate is 10 times" in row["warning"] for row in fast)
    # Each final loss is a mean over 100 noisy steps, itself known to 0.4% (docs/schedules.md).
    errors = np.abs([row["50%"] for row in calm])
    assert errors.mean() < 1.0 and errors.max() < 2.0, errors
    assert sum(row["inside 50%"] for row in calm) >= 8
