"""The command line as it is, for input that it must refuse."""

import pytest

from isoflop.cli import main as cli


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused with exit code 2; returns its one message."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
        errors = capsys.readouterr().err
        assert stopped.value.code == 2, errors
        assert "Traceback" not in errors
        lines = [line for line in errors.splitlines() if "isoflop: error:" in line]
        assert len(lines) == 1, errors
        return lines[0]

    return run
