"""The commands of alignment train in one process, and say so where a launcher starts several."""

import pytest

from isoflop.cli.main import main


@pytest.mark.parametrize("command", ["sft", "dpo", "reward"])
def test_several_processes_of_one_command_get_one_message(command, tmp_path, monkeypatch, capsys, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    for rank, code in (("1", 0), ("0", 2)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stopped:
            main([command, str(tmp_path / "none.toml"), "--out", str(tmp_path / "out")])
        assert stopped.value.code == code
        said = capsys.readouterr().err
        assert said.count("was started as 2 processes") == (rank == "0") and bool(said) == (rank == "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "none.toml" in refused(command, tmp_path / "none.toml", "--out", tmp_path / "out")
