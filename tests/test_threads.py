"""Threads that wait give their core away: the setting reaches OpenMP, its processes, and nothing that a user set."""

import os
import subprocess
import sys

from isoflop import threads
from isoflop.threads import SPINS, SPINS_BETWEEN_PRODUCTS, wait_briefly, wait_for_the_next_product


def test_what_a_user_set_stays():
    for name, value in (("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")):
        environment = {name: value}
        wait_briefly(environment)
        assert environment == {name: value}
    environment: dict[str, str] = {}
    wait_briefly(environment)
    assert environment == {"GOMP_SPINCOUNT": SPINS}


def test_commands_that_generate_stay_awake_longer_unless_the_user_said_something(monkeypatch):
    monkeypatch.setattr(threads, "_OURS", set())
    environment = {"GOMP_SPINCOUNT": "7"}
    wait_briefly(environment)
    wait_for_the_next_product(environment)
    assert environment == {"GOMP_SPINCOUNT": "7"}
    environment = {}
    wait_briefly(environment)
    wait_for_the_next_product(environment)
    assert environment == {"GOMP_SPINCOUNT": SPINS_BETWEEN_PRODUCTS}


def test_openmp_has_it_when_torch_comes_after_the_package():
    """libgomp prints the settings that it runs with."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", "import isoflop, torch; torch.ones(2) + 1"]
    shown = subprocess.run(
        command, env={**clean, "OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True, check=True
    )
    lines = [line for line in shown.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert lines and all(f"'{SPINS}'" in line for line in lines), shown.stderr
