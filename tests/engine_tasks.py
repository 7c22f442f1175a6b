"""Tasks for engines: importable by their workers, each a function of (argument, should_stop)."""

import os
import signal
import time
from pathlib import Path


def facts(argument, should_stop):
    import torch

    return {"argument": argument, "pid": os.getpid(), "threads": torch.get_num_threads(), "cwd": str(Path.cwd())}


def until_stopped(path, should_stop):
    """Writes that it runs, and when it is asked to stop that it has saved."""
    Path(f"{path}.runs").touch()
    while not should_stop():
        time.sleep(0.02)
    time.sleep(0.5)
    Path(f"{path}.saved").touch()
    return "interrupted"


def with_others(argument, should_stop):
    """Waits until so many run at once, a file each, then stays for a moment; returns its GPU and its time."""
    folder, name, n = argument
    Path(folder, name).touch()
    began = time.monotonic()
    while len(list(Path(folder).iterdir())) < n and not should_stop():
        time.sleep(0.02)
    time.sleep(1.0)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), began, time.monotonic()


def refuse(argument, should_stop):
    from isoflop.errors import RecipeError

    raise RecipeError(f"{argument} must be something else")


def bug(argument, should_stop):
    raise RuntimeError("no user can cause this")


def die(argument, should_stop):
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(argument, should_stop):
    time.sleep(argument)
    return os.getpid()
