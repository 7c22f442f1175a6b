"""Commands of a cluster that write down how they were called, and the scripts that stand in job files."""

import os
import shlex
import subprocess
from pathlib import Path

import yaml
from killing import finish

from isoflop.recipe import to_toml

MODEL = {"n_layers": 1, "d_model": 8, "n_heads": 2, "n_kv_heads": 2, "d_head": 4, "d_ff": 16, "seq_len": 16}
TRAIN = {"n_tokens": 640, "batch_tokens": 64, "learning_rate": 0.01}
RECIPES = {
    "sweep": {"study": "s", "ladder": {"budgets": [1e12], "n_sizes": 3}, "data": {"tokens": "runs/tokens"}},
    "pretrain": {"model": {**MODEL, "vocab_size": 512}, "data": {"tokens": "runs/tokens"}, "train": TRAIN},
}
GIVEN = {
    "slurm": {"partition": "gpu"},
    "kubernetes": {"image": "lab/isoflop:1", "volume": "work"},
    "skypilot": {"volume": "work", "accelerator": "H100"},
    "torchrun": {},
    "ray": {"hosts": "head,worker-1,worker-2", "user": "me"},
}
"""Kind of job file -> what it cannot do without."""
STAYS = "[ $1 != start ] || exec sleep 600"
"""Ray that runs until it is stopped."""


def written(folder: Path, kind: str) -> Path:
    """A small recipe of a kind, in a file."""
    path = folder / "recipe.toml"
    path.write_text(f"#:schema {kind}.json\n{to_toml(RECIPES[kind])}", encoding="utf-8")
    return path


class Cluster:
    """A folder of stand-ins for `isoflop`, `ray`, `srun`, `scontrol`, `torchrun`, first on the PATH of what it runs."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "calls"
        self.folder.mkdir()
        for name in ("isoflop", "ray", "srun", "scontrol", "torchrun"):
            self.put(name, "")

    def put(self, name: str, code: str) -> None:
        """A stand-in that writes down its words, then runs `code`, lines of bash."""
        path = self.folder / name
        written = f"printf '%s\\0' {name} \"$@\" $'\\x1e' >>{shlex.quote(str(self.log))}"
        path.write_text(f"#!/usr/bin/env bash\n{written}\n{code}\n", encoding="utf-8")
        path.chmod(0o755)

    def start(self, script: str, **environment: str) -> subprocess.Popen[str]:
        """Bash on a script, in a session of its own."""
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", "-c", script],
            env={**os.environ, "PATH": path, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, **environment: str) -> tuple[int, str]:
        """Exit code and standard error."""
        return finish(self.start(script, **environment))

    def calls(self, name: str) -> list[list[str]]:
        """The words after the name, of every call so far."""
        written = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        records = [record.split("\0")[:-1] for record in written.split("\x1e\0")[:-1]]
        return [words for first, *words in records if first == name]


def scripts(target: str, text: str) -> list[str]:
    """The shell scripts of a job file."""
    if target in ("slurm", "torchrun"):
        return [text]
    documents = list(yaml.safe_load_all(text))
    if target == "skypilot":
        return [documents[0]["run"]]
    if target == "ray":
        return [*documents[0]["head_start_ray_commands"], *documents[0]["worker_start_ray_commands"]]
    spec = documents[-1]["spec"]
    found = spec["trainer"] if "trainer" in spec else spec["template"]["spec"]["containers"][0]
    assert found["command"] == ["bash", "-c"]
    return found["args"]
