"""Which stream a thread warms up and captures on; what graphs compute is tested on a GPU (test_cuda_graph_gpu.py)."""

import contextlib

import pytest
import torch

from isoflop.training import cuda_graph


class FakeStream:
    def __init__(self, *_):
        self.waited_for = []

    def wait_stream(self, other):
        self.waited_for.append(other)


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_thread_with_its_own_stream_warms_up_and_captures_there(monkeypatch, in_thread):
    default, made, used = FakeStream(), [], []
    own = FakeStream() if in_thread else default

    def new_stream(*_):
        made.append(FakeStream())
        return made[-1]

    @contextlib.contextmanager
    def use(stream):
        used.append(stream)
        yield

    def graph(_graph, *, stream, **_):
        return use(stream)

    for name, fake in {
        "current_stream": lambda *_: own,
        "default_stream": lambda *_: default,
        "Stream": new_stream,
        "stream": use,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    with cuda_graph.warming_up(torch.device("cuda")):
        assert used == ([own] if in_thread else made)
    with cuda_graph.captured(None):  # type: ignore[arg-type]
        assert used[1] is (own if in_thread else None)
    assert len(made) == (0 if in_thread else 1) and used[0].waited_for[0] is own
