"""The page that compares runs, of a real evaluation of random runs: numbers, differences, samples."""

import json
import re
from pathlib import Path

import pytest
from evaluation_runs import official_files, run_of

from isoflop.cli.main import main
from isoflop.errors import DataError
from isoflop.evaluation.report import report_page, short_names
from isoflop.evaluation.run import with_cells
from isoflop.pages.plot import installed


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, tiny_tokens):
    """What a sweep of three random cells gave, through the command."""
    folder = tmp_path_factory.mktemp("evaluated")
    for seed in range(3):
        run = run_of(folder / "sweep/cells" / f"cell{seed}", tiny_tokens, seed=seed)
        (run / "result.json").write_text(json.dumps({"bits_per_byte": 3.0 - seed / 10}))
    data = official_files(folder / "data")
    rows = [json.loads(row) for row in (data / "piqa/valid.jsonl").read_text().splitlines()]
    marked = [row | {"goal": f"<script>alert(1)</script> {row['goal']}"} for row in rows]
    (data / "piqa/valid.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in marked))
    (folder / "eval.toml").write_text(
        '[tasks]\nnames = ["piqa", "winogrande", "nq_open"]\n[generation]\nmax_tokens = 4\n'
    )
    words = ["eval", str(folder / "sweep"), str(folder / "eval.toml"), "--data", str(data), "--limit", "24"]
    files = ["--json", str(folder / "f.json"), "--samples", str(folder / "s.jsonl"), "--report", str(folder / "r.html")]
    main([*words, *files])
    return folder


def test_a_sweep_is_evaluated_in_one_command_and_every_cell_leaves_its_record(evaluated):
    found = json.loads((evaluated / "f.json").read_text())["runs"]
    assert [name.rpartition("/")[2] for name in found] == ["cell0", "cell1", "cell2"]
    for name in found:
        rows = [json.loads(line) for line in Path(name, "evaluation.jsonl").read_text().splitlines()]
        assert [row["task"] for row in rows] == ["piqa", "winogrande", "nq_open"]
        assert [row["chance"] for row in rows] == [0.5, 0.5, None]
    assert with_cells(["a"]) == ["a"]
    (evaluated / "bare/cells/x").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no cell of .* has weights"):
        with_cells([str(evaluated / "bare")])


def test_the_page_shows_every_score_and_the_samples_that_differ(evaluated):
    html = (evaluated / "r.html").read_text()
    found = json.loads((evaluated / "f.json").read_text())
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", html, flags=re.DOTALL)
    for run in found["runs"].values():
        for value in run["tasks"]["piqa"].values():
            assert f"{value['value']:.3g}"[:4] in text
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert text.count("items right in cell0 only") >= 2 and "chosen by cell2" in text
    assert "Differences from cell0" in text and "Loss and benchmarks" in text
    assert "http" not in re.sub(r'xmlns[^"]*"[^"]*"', "", html).replace("http://www.w3.org", "")
    assert not installed() or html.count("<svg") == 2


def test_a_page_of_one_run_has_no_comparison_and_one_of_many_has_rows(evaluated):
    found = json.loads((evaluated / "f.json").read_text())
    samples = [json.loads(line) for line in (evaluated / "s.jsonl").read_text().splitlines()]
    first = next(iter(found["runs"]))
    one = report_page({"runs": {first: found["runs"][first]}}, [row for row in samples if row["run"] == first])
    assert 'id="differences"' not in one and 'id="samples"' not in one and "Evaluation of" in one
    many = {f"{first}/{n}": found["runs"][first] for n in range(8)}
    assert "<summary>piqa, acc</summary>" in report_page({"runs": many}, [])


def test_names_are_shown_without_what_they_share():
    assert short_names(["a/b/c", "a/b/d"]) == {"a/b/c": "c", "a/b/d": "d"}
    assert short_names(["a/b", "a"]) == {"a/b": "a/b", "a": "a"} and short_names(["x/y"]) == {"x/y": "y"}
