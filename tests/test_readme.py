"""README, docs and headers of recipes are tests: the parser takes every command they show, recipes have the keys."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

import isoflop
from isoflop.cli import main as cli
from isoflop.cli.arguments import is_override
from isoflop.errors import IsoflopError
from isoflop.keys import COMMANDS, recipe_of
from isoflop.recipe import load_recipe
from isoflop.scaling.laws import Surface
from isoflop.training.pretrain.recipe import PretrainRecipe

NAMES = ("README.md", "CONTRIBUTING.md", "docs/*.md")
PAGES = [path for name in NAMES for path in sorted(ROOT.glob(name))]
HEADERS = [
    *sorted((ROOT / "recipes").rglob("*.toml")),
    *sorted((ROOT / "recipes").rglob("*.sh")),
    *sorted((Path(isoflop.__file__).parent / "presets").rglob("*.toml")),
]
OPTION = re.compile(r"--[a-z][a-z-]*")
KIND_READ = {command: kind for kind, command in COMMANDS.items()} | {"ladder": "sweep", "inspect": "pretrain"}
"""Command -> the kind of recipe that it reads."""
WORD = r"(?:[^\s'();&,]+(?:'[^']*')?|'[^']*')"
IN_HEADER = re.compile(rf"(?:# {{3,}}|Command: +|then: |&& )isoflop((?: {WORD})+)")
"""Words of a command in a comment, one blank apart; a comma, a bracket or two blanks end it."""


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


def header_commands(text: str) -> list[list[str]]:
    """Words after `isoflop` of every command in the comments of a recipe."""
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    return [shlex.split(words) for words in IN_HEADER.findall(comments)]


def command_of(words: list[str]) -> str:
    """The command that these words begin with, of two words or of one."""
    pair = " ".join(words[:2])
    return pair if pair in cli.COMMANDS else words[0]


def options_of(stage: str) -> set[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        cli.main([*stage.split(), "--help"])
    return set(OPTION.findall(text.getvalue()))


def refusal(words: list[str]) -> str:
    """What is wrong with a command as the real parser and the recipe reader see it; empty: nothing."""
    stage = command_of(words) if words else ""
    if not words or stage.startswith("-"):
        return "" if stage in ("", "--help", "-h", "--version", "--install-completion", "--show-completion") else stage
    if stage in cli.GROUPS and len(words) == 1:
        return ""
    if stage not in cli.COMMANDS:
        return f"there is no command {stage}"
    given = words[len(stage.split()) :]
    options = options_of(stage) | {"--help"} if any(word.startswith("--") for word in given) else set()
    unknown = [word for word in given if word.startswith("--") and word.partition("=")[0] not in options]
    if unknown:
        return f"{stage} has no {unknown[0]}"
    missing = [word for word in given if word.startswith("recipes/") and not (ROOT / word).is_file()]
    return f"there is no {missing[0]}" if missing else ""


def complete(words: list[str]) -> bool:
    """Whether a command is written out, so that the parser can read it: its arguments stand there, no placeholders."""
    rest = words[len(command_of(words).split()) :] if words else []
    names_an_option = rest[:1] != [] and rest[0].startswith("--") and not command_of(words).endswith("demo")
    return bool(rest) and not names_an_option and not any(word.isupper() or "..." in word for word in rest)


def overrides_refused(words: list[str]) -> str:
    """Keys of a complete command that its recipe does not have."""
    recipes = [ROOT / word for word in words if word.startswith("recipes/") and word.endswith(".toml")]
    given = [word for word in words if is_override(word)]
    kind = KIND_READ.get(command_of(words))
    if not recipes or not given or kind is None:
        return ""
    try:
        load_recipe(recipes[0], recipe_of(kind), given)
    except IsoflopError as error:
        return str(error)
    return ""


COMMANDS_SHOWN = [
    pytest.param(words, id=f"{path.relative_to(ROOT)}: {' '.join(words)}"[:120])
    for path in PAGES
    for words in command_lines(path.read_text(encoding="utf-8"), "isoflop")
] + [
    pytest.param(words, id=f"{path.relative_to(ROOT)}: {' '.join(words)}"[:120])
    for path in HEADERS
    for words in header_commands(path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("words", COMMANDS_SHOWN)
def test_every_isoflop_command_shown_is_one_that_the_parser_takes(words, monkeypatch):
    if words and not command_of(words).islower():  # STAGE, a placeholder
        return
    assert refusal(words) == ""
    if complete(words) and command_of(words) in cli.COMMANDS:
        monkeypatch.chdir(ROOT)
        command, _, _ = cli.read(words)
        assert "--help" in words or command is cli.COMMANDS[command_of(words)]
        assert overrides_refused(words) == ""


def test_a_command_that_is_wrong_is_found():
    assert refusal(["corpus", "recipes/corpus/default.toml"]) != ""
    assert refusal(["fit", "t.csv", "--lw", "surface"]) == "fit has no --lw"
    assert refusal(["train", "recipes/none.toml"]) == "there is no recipes/none.toml"
    assert "ladder.minuts" in overrides_refused(["ladder", "recipes/sweep/cpu.toml", "ladder.minuts=3"])
    assert not complete(["train", "RECIPE"]) and complete(["train", "runs/plan.toml"])
    header = "# Command:  isoflop ladder a.toml --dry-run    (then: isoflop sweep a.toml)\n"
    header += "# Data:     make setup && isoflop tokens b.toml, then isoflop is done\n# The sweep of isoflop demo.\n"
    assert header_commands(header) == [["ladder", "a.toml", "--dry-run"], ["sweep", "a.toml"], ["tokens", "b.toml"]]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_make_target_exists(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    for words in command_lines(path.read_text(encoding="utf-8"), "make"):
        for word in words:
            assert "=" in word or word in targets, f"{path.name}: make {word}: targets are {sorted(targets)}"


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
    assert found.center == pytest.approx(float(law.loss(3e6, 2e7)), rel=0.03)
    assert best.scale == pytest.approx(law.optimum(2.4e13, 1.0)[0], rel=0.3)
    recipe = load_recipe(tmp_path / "plan.toml", PretrainRecipe)
    assert recipe.model.vocab_size == 512 and recipe.prediction["bits_per_byte"] == best.prediction.center
    assert len([line for line in block.splitlines() if line.strip()]) <= 6
