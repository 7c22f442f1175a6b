"""Arguments become values: anywhere in the line, checked before any work, refused in one sentence."""

import os
from pathlib import Path
from typing import Annotated, Literal

import pytest
from cyclopts import Parameter

from isoflop.cli.arguments import Json, Out, Overrides, Recipe
from isoflop.cli.main import read
from isoflop.errors import RecipeError
from isoflop.recipe import PositiveInt, Seed, Share


def bake(
    recipe: Recipe,
    /,
    *overrides: Overrides,
    out: Out = Path("runs/bake"),
    json: Json = None,
    seed: Seed = 0,
    trays: Annotated[tuple[PositiveInt, ...], Parameter(consume_multiple=True)] = (),
    heat: Share | None = None,
    mode: Literal["top", "bottom"] = "top",
    fan: bool = True,
) -> None:
    """Bakes."""


STAGES = {"bake": bake, "oven clean": bake}


def test_overrides_may_stand_before_and_after_options():
    for line in (
        "inspect recipe.toml model.n_layers=3 --json found.json --micro-batch 2",
        "inspect --json found.json recipe.toml --micro-batch=2 model.n_layers=3",
        "inspect model.n_layers=3 recipe.toml --json=found.json --micro_batch 2",
    ):
        _, words, options = read(line.split())
        assert words == [Path("recipe.toml"), "model.n_layers=3"]
        assert options == {"json": Path("found.json"), "micro_batch": 2}
    _, words, options = read(
        ["sweep", "--no-calibrate", "recipe.toml", "--out", "runs/a=b", "ladder.n_sizes=4", "data.tokens=ray://a"]
    )
    assert words == [Path("recipe.toml"), "ladder.n_sizes=4", "data.tokens=ray://a"]
    assert options == {"calibrate": False, "out": Path("runs/a=b")}
    command, words, options = read(["oven", "clean", "--out", "runs/c", "r.toml"], STAGES)
    assert (command, words, options) == (bake, [Path("r.toml")], {"out": Path("runs/c")})
    assert read(["bake", "a=1", "ray=ray://a", "r.toml"], STAGES)[1] == [Path("r.toml"), "a=1", "ray=ray://a"]


def test_options_of_several_values_keep_them():
    _, words, options = read(["passkey", "runs/x", "--lengths", "128", "256", "--depths", "0.0", "1.0"])
    assert words == [Path("runs/x")] and options == {"lengths": (128, 256), "depths": (0.0, 1.0)}
    _, words, options = read(
        ["fit", "--where", "a=1", "table.csv", "--where", "b<2", "more.csv", "--law", "power", "last=1.csv"]
    )
    assert words == [Path("table.csv"), Path("more.csv"), Path("last=1.csv")]
    assert options == {"where": ("a=1", "b<2"), "law": "power"}


def test_text_may_be_empty_where_that_is_a_value():
    assert read(["fit", "t.csv", "--form", "", "--weights", ""])[2] == {"form": "", "weights": ""}


@pytest.mark.parametrize("line", ["bake --help", "bake --otu x -h", "oven clean --help"])
def test_help_is_not_stood_in_the_way_of(line, capsys):
    command, words, options = read(line.split(), STAGES)
    command(*words, **options)
    assert "--trays" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bake", r"isoflop bake needs RECIPE; isoflop bake --help says more"),
        ("oven clean", r"isoflop oven clean needs RECIPE"),
        ("bake r.toml --otu x", r"--otu is not an option of isoflop bake; did you mean --out\?"),
        ("bake r.toml --zzz=1", r"--zzz is not an option of isoflop bake; isoflop bake --help lists"),
        ("bake r.toml --train.seed=1", r"--train.seed is not .*; keys of a recipe have no dashes: train.seed=\.\.\."),
        ("bake r.toml -x", r"-x is not an option of isoflop bake"),
        ("bake r.toml --out", r"--out needs a value after it"),
        ("bake r.toml --out=", r"--out needs a value after it"),
        ("bake r.toml --out --seed 1", r"--out needs a value after it"),
        ("bake r.toml --fan=maybe", r"--fan = 'maybe' must be true or false"),
        ("bake r.toml --seed one", r"--seed = 'one' must be a whole number"),
        ("bake r.toml --seed 1.5", r"--seed = '1.5' must be a whole number"),
        ("bake r.toml --heat hot", r"--heat = 'hot' must be a number"),
        ("bake r.toml --trays 1 b", r"--trays = 'b' must be a whole number"),
        ("bake r.toml --mode topp", r"--mode = 'topp' must be one of top, bottom; did you mean 'top'\?"),
        ("bake r.toml --seed 1 --seed 2", r"--seed is given twice; give it once"),
        ("bake r.toml --json train.seed=1", r"--json = 'train.seed=1' reads like an override"),
    ],
)
def test_what_the_parser_could_not_take_is_refused_in_a_sentence(arguments, message):
    with pytest.raises(RecipeError, match=message):
        read(arguments.split(), STAGES)


def test_too_much_and_too_little_are_refused():
    with pytest.raises(RecipeError, match="isoflop score does not know what to do with 'b'; leave it out"):
        read(["score", "a", "b"])
    with pytest.raises(RecipeError, match="isoflop export needs --out DIR"):
        read(["export", "runs/x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seed -1", r"--seed = -1 must be at least 0 and at most 4,294,967,295; the default is 0"),
        ("--trays 2 0", r"--trays\[1\] = 0 must be at least 1"),
        ("--heat nan", r"--heat = nan must be at least 0 and at most 1"),
        ("--json /proc/nowhere/x.json", r"--json /proc/nowhere/x.json can't be written: .*another path"),
    ],
)
def test_options_are_checked_before_the_stage_begins(options, message):
    with pytest.raises(RecipeError, match=message):
        read(["bake", "r.toml", *options.split()], STAGES)


def test_files_and_folders_are_told_apart(tmp_path):
    def bake(*arguments: object) -> None:
        read(["bake", *map(str, arguments)], STAGES)

    a_file = tmp_path / "a"
    a_file.write_text("")
    with pytest.raises(RecipeError, match=r"--out .* is a file; give the name of a folder"):
        bake("r.toml", "--out", a_file)
    with pytest.raises(RecipeError, match=r"--json .* is a folder; give the name of a file"):
        bake("r.toml", "--json", tmp_path)
    (tmp_path / "r.toml").write_text("")
    with pytest.raises(RecipeError, match=r"--json .*r.toml is there and no .json file; give another name"):
        bake("other.toml", "--json", tmp_path / "r.toml")
    with pytest.raises(RecipeError, match=r"--json .*r.toml is what the command reads"):
        bake(tmp_path / "r.toml", "--json", tmp_path / "r.toml")
    bake("r.toml", "--out", tmp_path, "--json", tmp_path / "new" / "found.json", "--heat", "0.5")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "r.toml"]


def test_two_outputs_of_one_name_are_refused(tmp_path):
    words = ["bake", "r.toml", "--out", str(tmp_path / "a"), "--json", str(tmp_path / "b" / ".." / "a")]
    with pytest.raises(RecipeError, match=r"--out and --json both name .*a; give each its own"):
        read(words, STAGES)


def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecipeError, match=r"--json .*pipe is a device or a pipe, .* give the name of a file"):
        read(["bake", "r.toml", "--json", str(tmp_path / "pipe")], STAGES)
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_that_leads_to_itself_is_no_reason_for_a_traceback(tmp_path):
    (tmp_path / "r.toml").symlink_to(tmp_path / "r.toml")
    assert read(["bake", str(tmp_path / "r.toml")], STAGES)[1] == [tmp_path / "r.toml"]
