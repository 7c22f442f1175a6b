"""What a person sees while a command works, and what signals do to it."""

import os
import signal

import pytest

from isoflop.cli import console
from isoflop.cli.console import Bar, stop_on_signal
from isoflop.training.forecast import Interval
from isoflop.training.monitor import Progress


def test_progress_into_a_file_is_plain_lines_that_become_rarer(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with Bar("token") as bar:
        for second in range(120):
            now[0] = float(second)
            bar.stage("encode", second, 200)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("%")[0] for line in lines] == [
        f"isoflop: encode, {share}" for share in ("1", "3", "7", "15", "30", "45")
    ]
    assert all("\r" not in line and line.endswith("left") for line in lines)


def test_what_ends_at_once_says_nothing(capsys):
    with Bar("token") as bar:
        bar.stage("encode", 1, 2)
    assert capsys.readouterr().err == ""


def test_a_run_is_shown_with_where_it_will_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    end = Interval(2.3101, 2.2672, 2.3598)
    progress = Progress(50, 100, 6400, 2.9, None, 1000.0, None, 6.4, final_loss=end)
    with Bar("token") as bar:
        for second in (0.0, 3.0):
            now[0] = second
            bar.training(progress)
    shown = "isoflop: step 50/100, loss 2.900, final loss 2.31 (2.27 to 2.36), 50%"
    assert capsys.readouterr().err.startswith(shown)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_sigterm_does_not_interrupt_a_save_and_a_second_control_c_does(capsys, first):
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as stop:
        assert not stop()
        os.kill(os.getpid(), first)
        assert stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert capsys.readouterr().err.count("saving and stopping") == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
