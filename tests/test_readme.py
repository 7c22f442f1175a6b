"""README and docs are tests: every command they show exists, with its options, its recipe and its make target."""

import contextlib
import io
import re
import shlex

import numpy as np
import pytest
from places import ROOT

from isoflop.cli import main as cli
from isoflop.recipe import load_recipe
from isoflop.scaling.laws import Surface
from isoflop.training.pretrain.recipe import PretrainRecipe

NAMES = ("README.md", "CONTRIBUTING.md", "docs/*.md")
PAGES = [path for name in NAMES for path in sorted(ROOT.glob(name))]
OPTION = re.compile(r"--[a-z][a-z-]*")


def blocks(text: str) -> list[str]:
    """Fenced blocks and inline code."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.M | re.S)
    return fenced + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def command_lines(text: str, name: str) -> list[list[str]]:
    """Words after `name` of every line of code that starts with it."""
    found = []
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+#.*$", "", line.strip()).removeprefix("$ ")
            line = re.sub(r"^\.venv/bin/", "", line)
            if line.split()[:1] == [name]:
                found.append(shlex.split(line, posix=True)[1:])
    return found


def options_of(stage: str) -> set[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        cli.main([*stage.split(), "--help"])
    return set(OPTION.findall(text.getvalue()))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_isoflop_command_has_a_stage_options_and_recipes_that_exist(path):
    for words in command_lines(path.read_text(encoding="utf-8"), "isoflop"):
        shown = "isoflop " + " ".join(words)
        pair = " ".join(words[:2])
        stage = pair if pair in cli.STAGES else words[0] if words else "--help"
        if stage.startswith("-"):
            assert stage in ("--help", "-h"), shown
            continue
        if not stage.islower():  # STAGE, a placeholder
            continue
        assert stage in cli.STAGES, f"{path.name}: {shown}: there is no stage {stage}"
        known = options_of(stage) | {"--help"}
        for word in words[1:]:
            if word.startswith("--"):
                option = word.partition("=")[0]
                assert option in known, f"{path.name}: {shown}: {stage} has no {option}, it has {sorted(known)}"
            elif word.startswith("recipes/") and word.endswith(".toml"):
                assert (ROOT / word).is_file(), f"{path.name}: {shown}: there is no {word}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_make_target_exists(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    for words in command_lines(path.read_text(encoding="utf-8"), "make"):
        for word in words:
            assert "=" in word or word in targets, f"{path.name}: make {word}: targets are {sorted(targets)}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_links_to_exists(path):
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_parser_of_commands_finds_what_pages_show():
    shown = "$ isoflop plan laws.json \\\n  --out x   # why\nmake demo\n"
    text = f"Run `isoflop fit t.csv --law surface` or\n```\n{shown}```\n"
    assert command_lines(text, "isoflop") == [
        ["plan", "laws.json", "--out", "x"],
        ["fit", "t.csv", "--law", "surface"],
    ]
    assert command_lines(text, "make") == [["demo"]]
    assert {"--law", "--map", "--where", "--bootstrap", "--json"} <= options_of("fit")


def test_the_python_quickstart_runs_and_its_numbers_are_near_the_truth_of_its_table(tmp_path, monkeypatch):
    """20 runs of L = 0.8 + 120 / M^0.4 + 150 / D^0.38, with 0.2% of noise."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    generator = np.random.default_rng(0)
    law = Surface(0.8, 120.0, 150.0, 0.4, 0.38)
    lines = ["M,D,loss"]
    for flops in np.geomspace(3e11, 2.4e12, 4):
        for size in law.optimum(flops, 1.0)[0] * np.geomspace(0.4, 2.5, 5):
            loss = law.loss(size, flops / size) * (1 + 0.002 * generator.normal())
            lines.append(f"{size},{flops / size},{loss}")
    (tmp_path / "runs.csv").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    found, best = names["loss"], names["best"]
    assert found.low < law.loss(3e6, 2e7) < found.high
    assert found.center == pytest.approx(float(law.loss(3e6, 2e7)), rel=0.02)
    assert best.scale == pytest.approx(law.optimum(2.4e13, 1.0)[0], rel=0.3)
    recipe = load_recipe(tmp_path / "plan.toml", PretrainRecipe)
    assert recipe.model.vocab_size == 512 and recipe.prediction["bits_per_byte"] == best.prediction.center
    assert len([line for line in block.splitlines() if line.strip()]) <= 6
