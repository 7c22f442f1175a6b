"""What an attack is: group, name, code, right verdicts.

The modules beside this one have the codes by group and name (`CODES`). Each code defines `attack(w)`, which returns
"reached" when it got what it wanted; `w` has the planted things (`world.py`). Errors are caught only where the attack
goes on after them. The secret is handed in backwards, so finding it forwards means that it was read.
"""

from typing import NamedTuple

FAILED, TIMEOUT, MEMORY, OUTPUT, KILLED = "failed", "timeout", "memory", "output", "killed"


class Attack(NamedTuple):
    group: str
    name: str
    code: str
    verdicts: tuple[str, ...]
