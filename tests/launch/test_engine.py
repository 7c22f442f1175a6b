"""What every engine keeps: results, errors as data, deaths that leave the others alone, and a stop that saves."""

import time
from collections.abc import Iterator
from pathlib import Path

import engine_tasks
import pytest
from ray_cluster import cluster

from isoflop.errors import RecipeError
from isoflop.launch import local
from isoflop.launch.choose import EngineSection, check_engine, open_engine
from isoflop.launch.engine import Engine
from isoflop.launch.local import LocalEngine


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two nodes of one CPU each and no GPU."""
    pytest.importorskip("ray", reason="the cluster engine is an extra: pip install isoflop[cluster]")
    with cluster("1", "1") as running:
        yield running.address


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    kind = request.param
    section = EngineSection(kind=kind, ray_address=request.getfixturevalue("address") if kind == "ray" else "")
    with open_engine(section, workers=2, threads=1, device="cpu") as opened:
        yield opened


def outcome(engine: Engine, *tasks):
    """Start them all at once; what came of each, in their order."""
    numbers = [engine.start(function, argument) for function, argument in tasks]
    ended = {}
    while len(ended) < len(numbers):
        ended |= {each.task: each for each in engine.poll(1.0)}
    return [ended[number] for number in numbers]


@pytest.mark.dist
def test_values_and_errors_come_back_and_a_death_leaves_the_others_alone(engine):
    assert engine.slots() == 2
    first, refused = outcome(engine, (engine_tasks.facts, [1, {"a": 2}]), (engine_tasks.refuse, "x"))
    assert first.value["argument"] == [1, {"a": 2}] and first.value["threads"] == 1 and first.seconds > 0
    assert first.value["cwd"] == str(Path.cwd()) and not first.error and not first.died
    assert (refused.error, refused.died, refused.value) == ("x must be something else", False, None)
    killed, whole = outcome(engine, (engine_tasks.die, None), (engine_tasks.sleep, 0.5))
    assert killed.died and killed.error and whole.value and not whole.error
    (bug,) = outcome(engine, (engine_tasks.bug, None))
    assert bug.died and bug.error == "RuntimeError: no user can cause this"
    assert outcome(engine, (engine_tasks.facts, 5))[0].value["argument"] == 5


@pytest.mark.dist
def test_a_stop_lets_tasks_save_and_the_engine_goes_on_after_it(engine, tmp_path):
    for name in "ab":
        engine.start(engine_tasks.until_stopped, str(tmp_path / name))
    while len(list(tmp_path.glob("*.runs"))) < 2:
        assert not engine.poll(0.1)
    engine.stop()
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == ["a.saved", "b.saved"]
    assert engine.poll(0.0) == [] and outcome(engine, (engine_tasks.facts, 1))[0].value["argument"] == 1


@pytest.mark.dist
def test_processes_that_have_loaded_torch_are_used_again():
    with LocalEngine(2, 1) as engine:
        (first,) = outcome(engine, (engine_tasks.facts, 1))
        (second,) = outcome(engine, (engine_tasks.facts, 2))
    assert first.value["pid"] == second.value["pid"]


@pytest.mark.dist
def test_workers_of_one_card_are_threads_of_one_process_and_share_its_end(monkeypatch):
    monkeypatch.setattr(local, "_cards", lambda: 2)
    with LocalEngine(4, 1, cuda=True) as engine:
        facts = outcome(engine, *[(engine_tasks.facts, number) for number in range(4)])
        pids = [each.value["pid"] for each in facts]
        assert pids[0] == pids[2] != pids[1] == pids[3] and [each.value["argument"] for each in facts] == [0, 1, 2, 3]
        refused, whole = outcome(engine, (engine_tasks.refuse, "x"), (engine_tasks.facts, 1))
        assert refused.error == "x must be something else" and whole.value["argument"] == 1
        began = time.monotonic()
        assert all(each.value for each in outcome(engine, *[(engine_tasks.sleep, 1.0)] * 4))
        assert time.monotonic() - began < 3.0  # at once, not in turn
        bug, other = outcome(engine, (engine_tasks.bug, None), (engine_tasks.sleep, 0.5))
        assert bug.died and other.value in pids
        killed, _, other = outcome(engine, (engine_tasks.die, None), *[(engine_tasks.sleep, 0.5)] * 2)
        assert killed.died and outcome(engine, (engine_tasks.facts, 5))[0].value["argument"] == 5


@pytest.mark.parametrize(
    ("section", "device", "message"),
    [
        ({"gpus_per_cell": 2.0}, "auto", "engine.gpus_per_cell = 2 must be at most 1: training over several GPUs"),
        ({"gpus_per_cell": -1.0}, "auto", "engine.gpus_per_cell = -1"),
        ({"kind": "ray", "gpus_per_cell": 0.0}, "cuda", "leaves no GPU for train.device = 'cuda'"),
        ({"kind": "ray"}, "cuda:1", "Ray says which GPU a cell has"),
        ({"kind": "ray", "ray_address": "ray://a:10001"}, "auto", "ray job submit, with --cluster auto"),
    ],
)
def test_values_that_do_not_go_together_are_refused(section, device, message):
    with pytest.raises(RecipeError) as found:
        check_engine(EngineSection(**section), device)
    assert message in str(found.value)
