"""A sweep decides, an engine runs: what is tried again, what fails alone, and the same records wherever cells run."""

import dataclasses
import random
import signal
import time
from os import kill as send
from pathlib import Path

import pytest
from killing import finish, n_lines, start, wait_until
from ray_cluster import cluster
from small_ladders import cells_of, facts, ladder_recipe

from isoflop.errors import IsoflopError
from isoflop.launch.engine import Ended, perform
from isoflop.launch.ray import RayEngine
from isoflop.recipe import write_recipe
from isoflop.scaling.sweep.cells import group_cells
from isoflop.scaling.sweep.records import read_records
from isoflop.scaling.sweep.run import run_sweep

DRIVER_BYTES = 1e9


def written(records):
    """What records say, by cell."""
    return sorted(map(facts, records), key=lambda row: row["run_id"])


class InThisProcess:
    """An engine that runs a task where it is started, and can make tasks end as others would not."""

    gpus: float | None = None
    lag_s = 0.0

    def __init__(self, disturb=lambda names, n: None, slots: int = 1):
        self._disturb, self._slots = disturb, slots
        self.ran: list[list[str]] = []
        self._ended: list[Ended] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def slots(self) -> int:
        return self._slots

    def require_shared(self, folder, read):
        pass

    def start(self, function, argument) -> int:
        names = [job["name"] for job in argument]
        self.ran.append(names)
        ended = self._disturb(names, len(self.ran))
        if ended is None:
            value, error = perform(function, argument, lambda: False)
            ended = Ended(0, value, error, node="there", seconds=2.0)
        self._ended.append(dataclasses.replace(ended, task=len(self.ran)))
        return len(self.ran)

    def poll(self, timeout_s):
        ended, self._ended = self._ended, []
        return ended

    def stop(self):
        pass


def test_a_cell_that_always_dies_is_recorded_as_failed_and_the_others_go_on(tmp_path, tiny_tokens):
    cells = cells_of(ladder_recipe(tiny_tokens))
    bad, said, shown = cells[1].cell_id, [], []
    engine = InThisProcess(lambda names, n: Ended(0, error="no memory", died=True) if bad in names else None)
    with pytest.raises(IsoflopError, match=f"1 of 4 cells failed.*job {bad} failed: 4 tries ended so: no memory"):
        run_sweep(cells, tmp_path, study="test", engine=engine, say=said.append, on_progress=shown.append)
    assert engine.ran.count([bad]) == 4 and len(engine.ran) == 2 + 3 + 4
    records = {record.run_id: record for record in read_records(tmp_path / "records.jsonl")}
    assert [records[cell.cell_id].status for cell in cells] == ["finished", "failed", "finished", "finished"]
    failed = records[bad]
    assert failed.error == "4 tries ended so: no memory" and failed.loss_nats is None and not failed.cooled
    assert failed.d_model == cells[1].config.d_model and failed.budget_flops == cells[1].budget_flops
    assert len(said) == 4 and sum("failed on" in line or "failed: " in line for line in said) == 1
    assert any(" finished on there: loss " in line and "(4 of 4 cells)" in said[-1] for line in said)
    assert shown[-1].worker_s == 2.0 * 5  # of what ended with a result
    again = InThisProcess()
    whole = run_sweep(cells, tmp_path, study="test", engine=again)
    assert [name for names in again.ran for name in names if not name.startswith("trunk-")] == [bad]
    assert [record.status for record in whole] == ["finished"] * 4
    assert written(whole) == written(run_sweep(cells, tmp_path / "whole", study="test", engine=InThisProcess()))


def test_branches_of_a_trunk_that_cannot_be_trained_fail_with_it(tmp_path, tiny_tokens):
    cells = cells_of(ladder_recipe(tiny_tokens))
    trunk = f"trunk-{cells[0].trunk_id}"
    mine = [cell.cell_id for cell in cells if cell.trunk_id == cells[0].trunk_id]
    engine = InThisProcess(lambda names, n: Ended(0, error="no such tokens") if trunk in names else None)
    with pytest.raises(IsoflopError, match=r"2 of 4 cells failed.*no such tokens"):
        run_sweep(cells, tmp_path, study="test", engine=engine)
    assert engine.ran.count([trunk]) == 1  # what a user can cause is not tried again
    records = {record.run_id: record for record in read_records(tmp_path / "records.jsonl")}
    assert {record.run_id: record.status for record in records.values()} == {
        cell.cell_id: "failed" if cell.cell_id in mine else "finished" for cell in cells
    }


def test_one_bad_cell_of_a_stack_fails_alone(tmp_path, tiny_tokens):
    cells = cells_of(ladder_recipe(tiny_tokens, widths=(8,), ratios=(0.25,), seeds=(0, 1, 2)))
    bad = cells[1].cell_id
    engine = InThisProcess(lambda names, n: Ended(0, error="bad") if bad in names else None)
    with pytest.raises(IsoflopError, match=f"1 of 3 cells failed.*job {bad} failed: bad"):
        run_sweep(cells, tmp_path, study="test", engine=engine, stack=3)
    assert [len(names) for names in engine.ran] == [3, 1, 1, 1]


def test_a_job_that_gets_further_between_deaths_is_never_given_up(tmp_path, tiny_tokens):
    (cell,) = cells_of(ladder_recipe(tiny_tokens, widths=(8,), ratios=(0.25,)))

    def die(names, n):
        if n > 9:
            return None
        (tmp_path / f"cells/{cell.cell_id}/checkpoints/step_{n:08d}").mkdir(parents=True)
        return Ended(0, error="preempted", died=True)

    engine = InThisProcess(die)
    with pytest.raises(IsoflopError):  # these checkpoints are empty folders
        run_sweep([cell], tmp_path, study="test", engine=engine)
    assert len(engine.ran) == 10


def test_the_cost_is_foretold_by_the_measured_speed(tmp_path, tiny_tokens):
    cells = cells_of(ladder_recipe(tiny_tokens))
    shown = []
    run_sweep(cells, tmp_path, study="test", engine=InThisProcess(), speed=lambda *_: 256.0, on_progress=shown.append)
    tokens = sum((cell.steps - cell.branch_step) * cell.batch_tokens for cell in cells)
    tokens += sum(
        max(cell.branch_step for cell in group.cells) * group.cells[0].batch_tokens for group in group_cells(cells)
    )
    assert shown[-1].expected_s == pytest.approx(tokens / 256.0)


@pytest.mark.slow
@pytest.mark.dist
def test_the_same_ladder_on_two_nodes_of_ray_has_the_same_records(tmp_path, tiny_tokens):
    pytest.importorskip("ray", reason="the cluster engine is an extra: pip install isoflop[cluster]")
    cells = cells_of(ladder_recipe(tiny_tokens))
    with cluster("1", "1") as running:
        said = []
        with RayEngine(running.address, threads=1, gpus=None, device="cpu", max_tasks=0) as engine:
            there = run_sweep(cells, tmp_path / "ray", study="test", engine=engine, say=said.append)
    here = run_sweep(cells, tmp_path / "local", study="test", workers=2)
    assert written(there) == written(here) and len(there) == 4
    assert len({line.split(" on ")[1].split(":")[0] for line in said}) == 2  # both nodes had cells
    for path in (tmp_path / "local").glob("*/*/metrics.jsonl"):
        assert (tmp_path / "ray" / path.relative_to(tmp_path / "local")).read_bytes() == path.read_bytes()


def memory_of(pid: int) -> int:
    """The most that the process has held, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.slow
@pytest.mark.dist
def test_ten_kills_a_removed_node_and_a_stopped_driver_change_no_record(tmp_path, tiny_tokens):
    pytest.importorskip("ray", reason="the cluster engine is an extra: pip install isoflop[cluster]")
    checkpoint = {"every_steps": 40, "every_s": 0.0}
    recipe = ladder_recipe(tiny_tokens, widths=(8, 16, 24), ratios=(4.0, 8.0, 16.0), checkpoint=checkpoint)
    write_recipe(tmp_path / "sweep.toml", recipe)
    cells = cells_of(recipe)
    undisturbed = run_sweep(cells, tmp_path / "whole", study="test", workers=2)
    n_whole = sum(map(n_lines, (tmp_path / "whole").glob("*/*/metrics.jsonl")))
    out, generator, finished, most = tmp_path / "out", random.Random(random.randrange(10**6)), {}, 0
    events = ["worker"] * 10
    events.insert(generator.randrange(1, 10), "node")
    events.insert(generator.randrange(1, 10), "driver")
    moments = sorted(generator.sample(range(20, n_whole * 3 // 5), len(events)))
    lines = lambda: sum(map(n_lines, out.glob("*/*/metrics.jsonl")))
    with cluster("1", "1", "1") as running:
        command = ("sweep", tmp_path / "sweep.toml", "--out", out, "--no-calibrate", "--engine", "ray")
        command = (*command, "--cluster", running.address)
        process = start(*command)
        for event, moment in zip(events, moments, strict=True):
            assert wait_until(lambda n=moment: lines() > n and running.tasks(), process), finish(process)
            most = max(most, memory_of(process.pid))
            for path in out.glob("cells/*/result.json"):
                finished.setdefault(path, path.stat().st_mtime_ns)
            if event == "node":
                running.remove_node()
            elif event == "driver":
                process.send_signal(signal.SIGKILL) if generator.random() < 0.5 else process.terminate()
                finish(process)
                process = start(*command)
            elif tasks := running.tasks():
                send(generator.choice(tasks), signal.SIGKILL)
        code, errors = finish(process)
    assert code == 0, errors
    assert most < DRIVER_BYTES
    records = read_records(out / "records.jsonl")
    assert written(records) == written(undisturbed)
    assert n_lines(out / "records.jsonl") == len(cells)
    assert finished and all(path.stat().st_mtime_ns == moment for path, moment in finished.items())  # never repeated
    for path in (tmp_path / "whole").glob("*/*/metrics.jsonl"):
        assert (out / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.dist
def test_control_c_on_a_cluster_started_here_saves_and_leaves_no_process(tmp_path, tiny_tokens):
    pytest.importorskip("ray", reason="the cluster engine is an extra: pip install isoflop[cluster]")
    write_recipe(tmp_path / "sweep.toml", ladder_recipe(tiny_tokens, widths=(8,), ratios=(100.0,)))
    out = tmp_path / "out"
    process = start("sweep", tmp_path / "sweep.toml", "--out", out, "--no-calibrate", "--engine", "ray")
    assert wait_until(lambda: any(map(n_lines, out.glob("*/*/metrics.jsonl"))), process)
    process.send_signal(signal.SIGINT)
    code, errors = finish(process)
    assert code == 130 and "Traceback" not in errors, errors
    assert list(out.glob("*/*/checkpoints/step_*"))  # what was under way was saved
    assert not (out / ".cluster_token").exists()
    deadline = time.monotonic() + 60
    while _in_session(process.pid):
        assert time.monotonic() < deadline, _in_session(process.pid)
        time.sleep(0.2)


def _in_session(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found
