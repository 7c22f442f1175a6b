"""What a person sees while a command works."""

from isoflop.cli import console
from isoflop.cli.console import Bar


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
