"""How OpenMP's threads wait for each other: a few microseconds awake, then asleep. Set once, before torch is loaded.

The threads of a product meet at its end. OpenMP lets those that are early spin for milliseconds, which is harmless on
a machine of its own; where another process has taken the core of the late one, the early ones use up the very time
that it waits for, and training falls to a twentieth of its speed (docs/log.md). Awake for as long as products on a
quiet machine are apart, and asleep after that, they give the core away.

The count is the one that GNU's OpenMP takes by itself when it knows of more threads than cores. Settings of the user
go before it. Processes that are started inherit it.
"""

import os
from collections.abc import MutableMapping

SPINS = "1000"
"""About 20 microseconds (libgomp's own throttled count; measured: docs/log.md 2026-11-29)."""
SPINS_BETWEEN_PRODUCTS = "15000"
"""About 300 microseconds, for commands that generate: small operators lie between the products of a decoding step, and
to be woken costs as much as they do. Training beside another process must not wait so long (docs/log.md 2026-11-30)."""
_BY_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_OURS: set[str] = set()
"""What was set here, not by the user."""


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Say so to OpenMP, unless the user has said something; of no effect once torch is loaded."""
    if not any(name in environment for name in _BY_USER):
        environment["GOMP_SPINCOUNT"] = SPINS
        _OURS.add("GOMP_SPINCOUNT")


def wait_for_the_next_product(environment: MutableMapping[str, str] = os.environ) -> None:
    """The same for a process that only generates, in place of `wait_briefly`."""
    if "GOMP_SPINCOUNT" in _OURS:
        environment["GOMP_SPINCOUNT"] = SPINS_BETWEEN_PRODUCTS
