"""Ray as an engine: shares of GPUs, machines that do not fit, and one clear message where it cannot be."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import engine_tasks
import pytest
from ray_cluster import Cluster, cluster

from isoflop.errors import DataError, RecipeError
from isoflop.launch import machine
from isoflop.launch import ray as engines
from isoflop.launch.ray import RayEngine


def engine_of(address: str, *, gpus: float | None = None, device: str = "cpu", max_tasks: int = 0) -> RayEngine:
    return RayEngine(address, threads=1, gpus=gpus, device=device, max_tasks=max_tasks)


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    """Two nodes of four CPUs; the second pretends two GPUs."""
    pytest.importorskip("ray", reason="the cluster engine is an extra: pip install isoflop[cluster]")
    with cluster("4", "4:2") as started:
        yield started


def most_at_once(times) -> int:
    moments = sorted([(began, 1) for began, _ in times] + [(ended, -1) for _, ended in times])
    at_once = [sum(step for _, step in moments[: index + 1]) for index in range(len(moments))]
    return max(at_once)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize(("gpus", "n_slots"), [(1.0, 2), (0.5, 4)])
def test_shares_of_gpus_are_respected(running, tmp_path, gpus, n_slots):
    with engine_of(running.address, gpus=gpus) as engine:
        assert engine.slots() == n_slots and engine.gpus == gpus
        for name in range(2 * n_slots):
            engine.start(engine_tasks.with_others, (str(tmp_path), str(name), n_slots))
        ended = []
        while len(ended) < 2 * n_slots:
            ended += engine.poll(1.0)
    assert not any(each.error for each in ended)
    by_gpu = {}
    for each in ended:
        index, began, over = each.value
        by_gpu.setdefault(index, []).append((began, over))
    assert sorted(by_gpu) == ["0", "1"]
    assert {most_at_once(times) for times in by_gpu.values()} == {round(1 / gpus)}  # all the room, and no more
    assert len({each.node for each in ended}) == 1  # the one with GPUs


@pytest.mark.slow
@pytest.mark.dist
def test_room_is_counted_and_the_lack_of_it_refused(running):
    with engine_of(running.address) as engine:
        assert engine.slots() == 8 and engine.gpus == 0.0
    with engine_of(running.address, gpus=0.25) as engine:
        assert engine.slots() == 4  # eight quarters of a GPU, but four CPUs beside them
    with engine_of(running.address, max_tasks=33) as engine:
        assert engine.slots() == 33
    with RayEngine(running.address, threads=64, gpus=None, device="cpu", max_tasks=0) as engine:
        with pytest.raises(RecipeError) as found:
            engine.slots()
        assert "no machine with room for a cell: one takes 64 CPUs (train.threads)" in str(found.value)
    with engine_of(running.address, gpus=1.0, device="cuda") as engine, pytest.raises(DataError) as lacking:
        engine.slots()
    assert "has GPUs for Ray, but its PyTorch sees none" in str(lacking.value)


@pytest.mark.slow
@pytest.mark.dist
def test_a_machine_with_other_software_or_without_the_folder_is_refused_by_name(running, tmp_path):
    with engine_of(running.address) as engine:
        engine.require_shared(tmp_path, [tmp_path])
        assert (tmp_path / ".cluster_token").is_file()
        with pytest.raises(DataError, match=r"machine \S+ of the cluster does not see \S+gone; give --out and data"):
            engine.require_shared(tmp_path, [tmp_path / "gone"])
        engine._ticket = engine._ticket._replace(read=(), software=(("isoflop", "0.0.1 (abc)"),))
        with pytest.raises(DataError, match=r"machine \S+ of the cluster has isoflop .*, this one 0.0.1 \(abc\)"):
            engine._ask_all()
        engine._ticket = engine._ticket._replace(software=(), token="another")
        engine.start(engine_tasks.facts, 1)  # a machine that came later
        with pytest.raises(DataError, match=r"machine \S+ of the cluster sees another"):
            while not engine.poll(1.0):
                pass
    assert not (tmp_path / ".cluster_token").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"software": (("torch", "1.0"),)}, "has torch "),
        ({"folder": "/gone"}, "does not see what this one writes to /gone (No such file or directory)"),
        ({"token": "other"}, "sees another "),
        ({"read": ("/gone",)}, "does not see /gone"),
    ],
)
def test_what_a_machine_lacks_is_said(tmp_path, change, problem):
    pytest.importorskip("ray", reason="the cluster engine is an extra: pip install isoflop[cluster]")
    (tmp_path / ".cluster_token").write_text("token", encoding="utf-8")
    ticket = machine.Ticket(1, 0.0, "cpu", machine.software(), "", str(tmp_path), "token", (str(tmp_path),))
    found = machine.lacks(ticket._replace(**change))
    assert problem in found and bool(found) == bool(problem)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with engine_of("auto") as engine, pytest.raises(RecipeError, match=r"needs Ray: pip install isoflop\[cluster\]"):
        engine.slots()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1: .*refused; give --cluster HOST:PORT"),
        ("nonsense", "engine.ray_address = 'nonsense' must be HOST:PORT"),
        ("auto", r"no Ray cluster on this machine \(--cluster auto\): start one with ray start --head"),
    ],
)
def test_no_cluster_at_the_address_is_said_at_once(monkeypatch, tmp_path, address, message):
    pytest.importorskip("ray", reason="the cluster engine is an extra: pip install isoflop[cluster]")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with engine_of(address) as engine, pytest.raises(RecipeError, match=message):
        engine.slots()


def test_what_listens_and_is_no_ray_head_is_said_at_once(capfd):
    pytest.importorskip("ray", reason="the cluster engine is an extra: pip install isoflop[cluster]")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        engine = engine_of(f"127.0.0.1:{server.server_port}")
        with engine, pytest.raises(RecipeError, match="is no head of a Ray cluster"):
            engine.slots()
        server.shutdown()
    assert "GCS" not in capfd.readouterr().err


def test_another_version_of_ray_and_a_missing_token_are_said(monkeypatch):
    ray = pytest.importorskip("ray", reason="the cluster engine is an extra: pip install isoflop[cluster]")
    monkeypatch.setattr(engines, "_answering", lambda address: address)
    for error, message in (
        (
            RuntimeError("Version mismatch: The cluster was started with:\n  Ray: 2.1"),
            "Ray: 2.1; install the cluster's",
        ),
        (ray.exceptions.AuthenticationError("no token"), "asks for a token and there is none here: set RAY_AUTH_MODE"),
        (ConnectionError("Failed to connect"), "takes this process: set RAY_AUTH_MODE=token"),
    ):

        def fail(error=error, **_):
            raise error

        monkeypatch.setattr(ray, "init", fail)
        with pytest.raises(RecipeError) as found:
            engines._connect("a:1")
        assert message in str(found.value) and "\n" not in str(found.value)


@pytest.mark.slow
@pytest.mark.dist
def test_a_cluster_that_wants_a_token_is_refused_in_one_sentence(tmp_path):
    pytest.importorskip("ray", reason="the cluster engine is an extra: pip install isoflop[cluster]")
    import os
    import subprocess

    with cluster("1", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="secret" * 8) as started:
        code = (
            "from isoflop.launch.ray import RayEngine\n"
            f"RayEngine({started.address!r}, threads=1, gpus=None, device='cpu', max_tasks=0).slots()"
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        paths = str(Path(engines.__file__).parents[2])
        for environment in ({"RAY_AUTH_MODE": "token"}, {}):
            there = {**kept, "PYTHONPATH": paths, "HOME": str(tmp_path), **environment}
            found = subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, text=True)
            assert found.returncode and "RAY_AUTH_TOKEN_PATH" in found.stderr.splitlines()[-1], found.stderr
