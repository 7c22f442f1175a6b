"""Hosts and planted things shared by the tests of the sandbox."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from world import Host, World  # noqa: E402

collect_ignore = ["host.py"] if sys.platform == "linux" else ["host.py", "test_attacks.py", "test_layers.py"]


@pytest.fixture(scope="session")
def world():
    planted = World()
    yield planted
    planted.close()


@pytest.fixture(scope="session")
def host():
    """All layers that there are, as whoever runs the tests."""
    made = Host()
    yield made
    assert made.close() == 0
