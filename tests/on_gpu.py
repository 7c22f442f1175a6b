"""What tests on a GPU share."""

import contextlib

import torch


@contextlib.contextmanager
def waiting_for_the_device_is_an_error():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
