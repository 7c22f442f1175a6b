"""A Ray cluster in a process of its own, for tests: several nodes on this machine, with what they started ended alone.

`python ray_cluster.py CPUS:GPUS ...` prints its address; a line `remove` takes the last node away, the end of its input
ends it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
STORE_BYTES = 80 * 2**20


class Cluster:
    """A running one."""

    def __init__(self, process: subprocess.Popen[str], address: str):
        self.process, self.address = process, address

    def remove_node(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("remove\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "removed\n"

    def tasks(self) -> list[int]:
        """Processes that run a task of ours at the moment."""
        return [pid for pid in _descendants(self.process.pid) if "ray::_task" in _command(pid)]


@contextmanager
def cluster(*nodes: str, **environment: str) -> Iterator[Cluster]:
    """Nodes as "CPUS:GPUS"; the environment is that of their workers, too."""
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    command = [sys.executable, str(HERE / "ray_cluster.py"), *nodes]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        address = process.stdout.readline().strip()
        assert address, "the cluster did not start"
        yield Cluster(process, address)
    finally:
        process.stdin.close()
        process.wait(timeout=120)
        process.stdout.close()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _descendants(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text(encoding="ascii").split()]
    except OSError:
        return []
    return children + [below for child in children for below in _descendants(child)]


def _main(nodes: list[str]) -> None:
    from ray.cluster_utils import Cluster as Local

    started = Local()
    try:
        added = []
        for index, node in enumerate(nodes):
            cpus, _, gpus = node.partition(":")
            head = {"include_dashboard": False} if index == 0 else {}
            added.append(
                started.add_node(num_cpus=int(cpus), num_gpus=int(gpus or 0), object_store_memory=STORE_BYTES, **head)
            )
        print(started.address, flush=True)
        for line in sys.stdin:
            if line == "remove\n":
                started.remove_node(added.pop(), allow_graceful=False)
                print("removed", flush=True)
    finally:
        started.shutdown()


if __name__ == "__main__":
    _main(sys.argv[1:])
