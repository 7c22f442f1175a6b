"""Any locale, any terminal, closed pipes: a command ends as always, and what it found is written before it is shown."""

import json
import os
import subprocess
import sys

import pytest

PLAN = ("plan", "deepseek", "--budget-flops", "1e19")
LOCALES = {
    "no locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii output": {"PYTHONIOENCODING": "ascii"},
    "Latin-1 output": {"PYTHONIOENCODING": "latin-1"},
    "no terminal type": {"TERM": ""},
    "a narrow terminal": {"COLUMNS": "20"},
}


def isoflop(*words, environment=None, **options):
    return subprocess.run(
        [sys.executable, "-m", "isoflop", *map(str, words)],
        env={**os.environ, **(environment or {})},
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        timeout=120,
        **options,
    )


@pytest.mark.parametrize("words", [("--help",), ("keys", "tokens"), PLAN], ids=lambda words: words[0])
@pytest.mark.parametrize("case", LOCALES)
def test_a_command_ends_as_always_in_any_locale(tmp_path, case, words):
    out = ("--out", tmp_path / "p\u00e9 \u6587.toml") if words == PLAN else ()
    ended = isoflop(*words, *out, environment=LOCALES[case], stdout=subprocess.PIPE)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr
    assert ended.stdout.strip()


@pytest.mark.parametrize("words", [("--help",), ("keys",), ("schema", "sweep"), PLAN], ids=lambda words: words[0])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, words):
    out = ("--out", tmp_path / "p.toml", "--json", tmp_path / "p.json") if words == PLAN else ()
    reading, writing = os.pipe()
    os.close(reading)  # nobody reads: every write fails
    try:
        ended = isoflop(*words, *out, stdout=writing)
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr.count("Traceback")) == (0, 0), ended.stderr
    if out:
        assert json.loads((tmp_path / "p.json").read_text())["total_flops"] > 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_output_costs_the_picture_and_not_the_file(tmp_path):
    with open("/dev/full", "w") as full:
        ended = isoflop(*PLAN, "--out", tmp_path / "p.toml", "--json", tmp_path / "p.json", stdout=full)
    assert "Traceback" not in ended.stderr
    assert json.loads((tmp_path / "p.json").read_text())["total_flops"] > 0


def test_a_closed_output_is_no_error(tmp_path):
    code = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, '-m', 'isoflop', *sys.argv[1:]])"
    words = [*PLAN, "--out", str(tmp_path / "p.toml")]
    ended = subprocess.run([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True, timeout=120)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr
    assert (tmp_path / "p.toml").is_file()
