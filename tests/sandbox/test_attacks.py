"""Every attack is contained, its verdict is right and the parent unharmed: as root, as nobody, and with layers gone."""

import os
import shutil
from pathlib import Path

import attacks_files
import attacks_others
import attacks_resources
import pytest
from attacks import FAILED, OUTPUT, TIMEOUT, Attack
from world import SECRET, Host

ATTACKS = [
    Attack(group, name, code, module.VERDICTS.get(name, (FAILED,)))
    for module in (attacks_resources, attacks_files, attacks_others)
    for group, codes in module.CODES.items()
    for name, code in codes.items()
]
USERS = ("", "nobody") if os.geteuid() == 0 else ("",)
GONE = ("", "seccomp", "landlock", "namespaces")
SLOW = ("mount", "pid", "net", "mount_setattr", "mount_setattr,landlock,seccomp")
HOSTS = [(user, without) for user in USERS for without in GONE] + [("", "user")] * (os.geteuid() == 0)
HOSTS += [pytest.param((user, without), marks=pytest.mark.slow) for user in USERS for without in SLOW]
REACH = {"network", "files", "secrets"}
"""Groups whose attacks must work without a sandbox, or they show nothing."""


@pytest.fixture(scope="module", params=HOSTS, ids=lambda p: f"{p[0] or 'self'}{'-without-' + p[1] if p[1] else ''}")
def attacked(request):
    with Host(*request.param) as host:
        yield host


def left_of(supervisor: int) -> str:
    """Processes that a supervisor has: it adopts all orphans, so nothing of a job can be elsewhere."""
    return Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text(encoding="ascii")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{a.group}-{a.name}".replace(" ", "_"))
def test_attack_is_contained(attack, attacked, world):
    before = attacked.ask(look=1)
    free = shutil.disk_usage("/").free
    wall_s = 0.5 if TIMEOUT in attack.verdicts else 10.0
    given = {**world.given(), "host": before["pid"], "victim": before["victim"], "supervisor": before["supervisors"][0]}
    found = attacked.run(attack.code, calls=[[[given], "reached"]], wall_s=wall_s)
    assert found["verdict"] in attack.verdicts, found
    assert world.changed() == []
    assert SECRET not in found["output"] + found["detail"] + found["values"]
    after = attacked.ask(look=1)
    assert after["state"] == "S" and after["supervisors"] == before["supervisors"]
    assert after["children"] == before["children"]
    assert [left_of(supervisor) for supervisor in after["supervisors"]] == [""], "a process of the job is left"
    assert after["peak_kib"] - before["peak_kib"] < 32 * 1024
    if found["verdict"] == TIMEOUT:
        assert found["took_s"] < wall_s + 1
    if found["verdict"] == OUTPUT:
        assert len(found["output"]) <= 2**20
    if attack.group == "disk":
        assert shutil.disk_usage("/").free > free - 200 * 2**20
        assert [list(Path(folder).iterdir()) for folder in after["folders"]] == [[]]


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.group in REACH], ids=lambda a: a.name.replace(" ", "_"))
def test_attack_works_outside(attack, host, world):
    look = host.ask(look=1)
    given = {**world.given(), "host": look["pid"], "victim": look["victim"], "supervisor": look["supervisors"][0]}
    if attack.name in _NOT_OUTSIDE:
        pytest.skip(_NOT_OUTSIDE[attack.name])
    code = f"import os\nos.chdir({given['folder']!r})\n{attack.code}\nprint(attack({given!r}))"
    try:
        assert host.ask(bare=code)["output"] == "reached\n"
    finally:
        world.plant()


_NOT_OUTSIDE = {
    "change the interpreter": "would change it",
    "through its own descriptors": "a plain child inherits none either",
    "its environment": "a plain child of the host has its environment, but one is enough: see the host's",
    "memory by process_vm_readv": "the address is one of the caller",
    "the memory of its parent": "address 0 cannot be read",
    "a link in from outside": "needs the same file system",
    "the environment of its parent": "the same as the host's, whose child it is",
}
