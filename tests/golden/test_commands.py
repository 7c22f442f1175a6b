"""Nothing that a user could ask for is lost: commands and options, shipped recipes, keys and their defaults."""

import json

import commands

KEPT = json.loads(commands.KEPT.read_text(encoding="utf-8"))


def test_every_command_option_recipe_and_key_is_still_there():
    assert commands.lost(KEPT) == []


def test_the_list_of_commands_is_read_from_the_help():
    assert set(commands.commands()) >= set(KEPT["commands"])
    assert len(KEPT["commands"]) == 23 and KEPT["commands"]["corpus build"] == ["--json", "--out"]


def test_what_is_lost_is_named():
    kept = {
        "commands": {"train": ["--out", "--fly"], "nothing": ["--out"], "corpus nothing": []},
        "recipes": {"recipes/sweep/cpu.toml": ["study", "ladder.wings"], "recipes/none.toml": ["study"]},
        "keys": {"sweep": {"ladder.workers": 1, "ladder.n_sizes": 6, "ladder.wings": 2}},
    }
    assert commands.lost(kept) == [
        "train --fly",
        "nothing",
        "corpus nothing",
        "recipes/sweep/cpu.toml: ladder.wings",
        "recipes/none.toml",
        "sweep: ladder.n_sizes = 5 by default, was 6",
        "sweep: ladder.wings",
    ]
