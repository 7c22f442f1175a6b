"""How OpenMP's threads wait for each other: for moments awake, then asleep. Set once, before torch is loaded.

The threads of a product meet at its end. OpenMP lets those that are early spin for milliseconds, which is harmless on
a machine of its own; where another process has taken the core of the late one, the early ones use up the very time
that it waits for, and training falls to a twentieth of its speed (docs/log.md). Awake for as long as products on a
quiet machine are apart, and asleep after that, they give the core away. Between the products of a decoding step lie
100 microseconds of small operators, and to be woken costs as much again.

Settings of the user go before it. Processes that are started inherit it.
"""

import os
from collections.abc import MutableMapping

SPINS = "15000"
"""About 300 microseconds (measured: docs/log.md 2026-11-29 and 2026-11-30)."""
_BY_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Say so to OpenMP, unless the user has said something; of no effect once torch is loaded."""
    if not any(name in environment for name in _BY_USER):
        environment["GOMP_SPINCOUNT"] = SPINS
