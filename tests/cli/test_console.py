"""What a person sees while a command works."""

from isoflop.cli import console
from isoflop.cli.console import Bar
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
