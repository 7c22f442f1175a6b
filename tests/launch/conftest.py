"""A cluster of stand-ins, and job files made from small recipes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pretended import GIVEN, RECIPES, Cluster

from isoflop.launch.job import Options, plan_job
from isoflop.launch.job_file import job_file
from isoflop.recipe import to_toml


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "bin")


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., str]:
    """A job file: made("slurm", "sweep", nodes=2)."""

    def make(target: str, kind: str = "pretrain", overrides: tuple[str, ...] = (), **options) -> str:
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(f"#:schema {kind}.json\n{to_toml(RECIPES[kind])}", encoding="utf-8")
        return job_file(plan_job(target, recipe, overrides, Options(**{**GIVEN[target], **options})))

    return make
