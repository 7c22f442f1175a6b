"""What a run says of itself, and that a folder has one process at a time."""

import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from killing import ENVIRONMENT

from isoflop.errors import RecipeError
from isoflop.run import commit, now, only_one, processor, require_run_folder


def test_now_is_utc_with_an_offset_and_whole_seconds():
    moment = datetime.fromisoformat(now())
    assert moment.utcoffset() is not None and moment.microsecond == 0
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 5


def test_the_commit_is_that_of_the_checkout_or_empty(monkeypatch):
    found = commit()
    assert found == "" or len(found.rstrip("+")) == 12
    monkeypatch.setenv("PATH", "")
    assert commit() == ""


def test_the_processor_has_a_name_and_cores():
    assert processor().endswith("cores") and processor()[0] != ","


def test_a_second_holder_is_refused_and_a_later_one_is_not(tmp_path):
    second = only_one(tmp_path / "run")
    message = r"another process is working in .*run; wait for it or choose another"
    with only_one(tmp_path / "run"), pytest.raises(RecipeError, match=message), second:
        pass
    with only_one(tmp_path / "run"):
        pass


@pytest.mark.dist
def test_the_lock_ends_with_a_process_that_is_killed_and_waiting_for_it_works(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom isoflop.run import only_one\n"
        f"with only_one(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(RecipeError), only_one(tmp_path):
        pass
    holder.kill()
    began = time.monotonic()
    with only_one(tmp_path, wait_s=20.0):
        assert time.monotonic() - began < 20.0
    holder.wait()
    holder.stdout.close()


def test_a_lock_file_that_nobody_holds_blocks_nobody(tmp_path):
    (tmp_path / ".lock").write_text("left by a killed process", encoding="utf-8")
    with only_one(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_refused_work_leaves_no_folder_and_begun_work_keeps_it(tmp_path):
    for name, begun in (("refused", False), ("begun", True)):
        with pytest.raises(ValueError, match="no"), only_one(tmp_path / name):
            if begun:
                (tmp_path / name / "metrics.jsonl").write_text("x")
            raise ValueError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="no"), only_one(tmp_path / "there"):
        raise ValueError("no")
    assert (tmp_path / "there").is_dir()


def test_a_folder_of_something_else_is_no_run_folder(tmp_path):
    for name, files in (("new", ()), ("run", ("recipe.toml", "metrics.jsonl")), ("locked", (".lock",))):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("x")
        require_run_folder(tmp_path / name)
    require_run_folder(tmp_path / "nowhere")
    (tmp_path / "new" / "a.txt").write_text("x")
    with pytest.raises(RecipeError, match=r"--out .*new has a.txt and no recipe.toml: give a run's folder"):
        require_run_folder(tmp_path / "new")
