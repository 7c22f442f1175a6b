import json
import os
from pathlib import Path

import pytest

from isoflop.corpus.tables.stages import Build, Task, Workers, fingerprint
from isoflop.errors import DataError


def double(value: int, folder: Path) -> dict[str, int]:
    """A task: leaves a file and counts its calls."""
    with (folder / f"{value}.calls").open("a") as file:
        file.write("x")
    return {"twice": 2 * value}


def die(value: int) -> dict[str, int]:
    if value == 3:
        os._exit(9)
    return {"value": value}


def tasks(folder: Path, n: int = 6) -> list[Task]:
    return [Task(f"{value}", (value, folder), 10) for value in range(n)]


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_tasks_and_each_is_done_once(tmp_path: Path, workers: int) -> None:
    calls: list[tuple[str, int, int]] = []
    for _ in range(2):
        with Workers(workers) as pool:
            build = Build(tmp_path, pool, lambda *call: calls.append(call))
            stage = build.open("double", {"a": 1})
            found = build.run(stage, double, tasks(stage.folder))
        assert found == [{"twice": 2 * value} for value in range(6)]
    assert [(stage.folder / f"{value}.calls").read_text() for value in range(6)] == ["x"] * 6
    assert calls[-1] == ("double", 60, 60)


def test_a_stage_goes_on_with_the_tasks_that_are_missing(tmp_path: Path) -> None:
    with Workers(1) as pool:
        build = Build(tmp_path, pool)
        stage = build.open("double", {})
        build.run(stage, double, tasks(stage.folder))
        (stage.folder / "stage.json").unlink()
        (stage.folder / "done" / "4.json").unlink()
        build.run(stage, double, tasks(stage.folder))
    assert [(stage.folder / f"{value}.calls").read_text() for value in range(6)] == ["x"] * 4 + ["xx", "x"]


def test_other_options_or_inputs_make_a_stage_new_and_remove_the_old(tmp_path: Path) -> None:
    with Workers(1) as pool:
        build = Build(tmp_path, pool)
        first, other = build.open("read", {"a": 1}), build.open("filter", {}, [build.open("read", {"a": 1})])
        changed = build.open("read", {"a": 2})
        after = build.open("filter", {}, [changed])
    assert not first.folder.exists() and not other.folder.exists()
    assert changed.folder.exists() and after.folder.exists() and after.folder != other.folder
    assert fingerprint("a", {"x": 1, "y": 2}) == fingerprint("a", {"y": 2, "x": 1}) != fingerprint("a", {"x": 1})


def test_a_killed_worker_is_one_message_and_the_others_work_is_kept(tmp_path: Path) -> None:
    with Workers(2) as pool:
        build = Build(tmp_path, pool)
        stage = build.open("die", {})
        with pytest.raises(DataError, match=r"a worker process was killed.*run the same command again"):
            build.run(stage, die, [Task(str(value), (value,)) for value in range(8)])
    done = sorted(path.name for path in (stage.folder / "done").iterdir())
    assert "3.json" not in done
    assert all(json.loads((stage.folder / "done" / name).read_text()) for name in done)
