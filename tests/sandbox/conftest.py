"""Hosts and planted things shared by the tests of the sandbox."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import Host, World

collect_ignore = ["host.py"] if sys.platform == "linux" else ["host.py", "test_attacks.py", "test_layers.py"]


@pytest.fixture(scope="session")
def world():
    planted = World()
    yield planted
    planted.close()


@pytest.fixture(scope="session")
def host():
    """All layers that there are, as whoever runs the tests."""
    with Host() as made:
        yield made
