"""Memory under the mixed load of benchmarks/serving_memory.py: flat, and nothing is held afterwards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving_memory.py"


@pytest.mark.parametrize("minutes", [0.2, pytest.param(2, marks=pytest.mark.slow)])
def test_memory_is_flat_and_nothing_is_held_after_a_mixed_load(tmp_path, minutes):
    out = tmp_path / "memory.json"
    subprocess.run([sys.executable, str(SCRIPT), "--minutes", str(minutes), "--json", str(out)], check=True)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["finished"] > 10 and found["cancelled"] > 3
    assert found["pages_held"] == found["requests_held"] == 0
    assert found["growth_of_last_half"] < (0.01 if minutes >= 2 else 0.03)  # seconds are too short for one percent
