"""A cluster of stand-ins, and job files made from small recipes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pretended import GIVEN, Cluster, written

from isoflop.launch.job import Options, plan_job
from isoflop.launch.job_file import job_file


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "bin")


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., str]:
    """A job file: made("slurm", "sweep", nodes=2); kubeflow is kubernetes with --kubeflow."""

    def make(target: str, kind: str = "pretrain", overrides: tuple[str, ...] = (), **options) -> str:
        if target == "kubeflow":
            target, options = "kubernetes", {**options, "kubeflow": True}
        return job_file(plan_job(target, written(tmp_path, kind), overrides, Options(**{**GIVEN[target], **options})))

    return make
