"""Headers and cues of the Chinese tasks, from the package's data."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def texts(task: str) -> dict[str, Any]:
    """The strings of one task."""
    text = files("isoflop").joinpath("presets/tasks/chinese.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)[task]
