"""What tests on a GPU share."""

import contextlib
import warnings

import torch


@contextlib.contextmanager
def waiting_for_the_device_is_an_error():
    """Inside, a hidden wait raises; the mode is the default again after it, however it ends."""
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():  # torch 2.11 warns that the mode itself is a prototype
            warnings.filterwarnings("ignore", message=".*[Ss]ynchronization debug mode.*")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Ss]ynchronization debug mode.*")
            torch.cuda.set_sync_debug_mode("default")
