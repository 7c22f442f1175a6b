"""The sandbox knows what holds it: it refuses where a property cannot be had, and says which layers it found."""

import os
import re
import sys
from pathlib import Path

import pytest
from world import Host

from isoflop.errors import SandboxError
from isoflop.sandbox import seccomp
from isoflop.sandbox.jobs import Call, Calls, Job, Outcome, Verdict
from isoflop.sandbox.layers import LAYERS
from isoflop.sandbox.protection import NEEDS, assess
from isoflop.sandbox.sandbox import Sandbox
from isoflop.sandbox.supervisor import remove_folder

USERS = ("", "nobody") if os.geteuid() == 0 else ("",)
IMPOSSIBLE = [
    ("network", "seccomp,net"),
    ("network", "seccomp,mount"),
    ("files", "landlock,mount"),
    ("files", "landlock,namespaces"),
    ("files", "seccomp,mount"),
    ("processes", "seccomp,pid"),
    ("limits", "limits"),
    ("limits", "seccomp,ipc"),
]
COUNT = "def attack(n):\n    return n\n"


@pytest.mark.parametrize(("name", "without"), IMPOSSIBLE)
@pytest.mark.parametrize("user", USERS)
def test_refuses_where_a_property_is_impossible(name, without, user):
    with Host(user, without) as host:
        found = host.run(COUNT, calls=[[[1], 1]])
    gone = [layer for layer in without.split(",") if layer != "namespaces"]
    assert not host.hello["holds"] and all(layer in host.hello["properties"][name] for layer in gone), host.hello
    assert found["verdict"] == "refused" and found["output"] == ""
    assert f"the sandbox cannot hold here ({name}" in found["detail"] or f"; {name}: " in found["detail"]
    assert "give it Linux 5.13+" in found["detail"]


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can change its user")
def test_root_without_seccomp_needs_another_user():
    with Host("", "seccomp,user") as host:
        assert not host.hello["holds"] and "user is missing" in host.hello["properties"]["processes"]
        assert host.run(COUNT, calls=[[[1], 1]])["verdict"] == "refused"


@pytest.mark.parametrize("without", ["", "seccomp", "landlock", "namespaces", "mount_setattr"])
@pytest.mark.parametrize("user", USERS)
def test_holds_and_says_what_is_missing(without, user):
    gone = {"namespaces": {"net", "ipc", "nested", "mount", "pid"}, "": set(), "mount_setattr": set()}.get(
        without, {without}
    )
    with Host(user, without) as host:
        assert host.hello["holds"], host.hello
        closed_home = {"user"} if without == "namespaces" else set()  # another user cannot read our interpreter there
        assert gone <= set(host.hello["missing"]) <= gone | closed_home
        assert host.run(COUNT, calls=[[[1], 1]])["verdict"] == "passed"


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox holds on Linux only")
def test_a_layer_that_goes_after_the_start_refuses_the_job(monkeypatch):
    with Sandbox() as sandbox:
        sandbox.require()
        job = Job("def f(x): return x", Calls("f", (Call((1,), 1),)))
        assert sandbox.run(job).verdict == Verdict.PASSED
        worker = sandbox._workers[0]
        monkeypatch.setattr(worker, "_receive", _with_setup_error(worker._receive))
        outcome = sandbox.run(job)
        assert outcome.verdict == Verdict.REFUSED and outcome.detail == "not run: landlock: gone"


def _with_setup_error(receive):
    return lambda within_s: {**receive(within_s), "setup": "landlock: gone"}


def test_other_systems_refuse(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with Sandbox() as sandbox:
        outcome = sandbox.run(Job("", Calls("f", ())))
        assert outcome.verdict == Verdict.REFUSED and "darwin has none of the layers" in outcome.detail
        with pytest.raises(SandboxError, match=r"the sandbox cannot hold here .* give it Linux 5\.13\+"):
            sandbox.require()


@pytest.mark.parametrize("leak", NEEDS)
def test_a_probe_that_gets_through_refuses_though_all_layers_seem_there(leak):
    """The probes themselves are believed, not the list of layers."""
    good = {
        "network": ["PermissionError"] * 4,
        "files": ["PermissionError"] * 5,
        "processes": "denied",
        "memory": "denied",
        "hidden": [True, True],
    }
    bad = {"network": ["OSError", "done", "OSError", "OSError"], "files": ["done"] * 5, "limits": 2**29}

    def run(job):
        assert isinstance(job.check, Calls)
        name = job.check.function
        if name == "endless":
            return Outcome(Verdict.TIMEOUT)
        if (name == "memory" and leak == "limits") or name == leak:
            return Outcome(Verdict.FAILED, values=(bad[leak],)) if leak in bad else Outcome(Verdict.KILLED, "signal 9")
        return Outcome(Verdict.FAILED, values=(good[name],))

    protection = assess({"missing": {}, "landlock_version": 7}, "3.11", run)
    assert not protection.holds and [name for name, why in protection.properties.items() if why] == [leak]


def test_every_layer_in_a_need_exists():
    assert {layer for ways in NEEDS.values() for way in ways for layer in way} <= set(LAYERS)


@pytest.mark.parametrize(
    ("architecture", "headers"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_numbers_of_system_calls_are_those_of_the_headers(architecture, headers):
    if not Path(headers).is_file():
        pytest.skip(f"no {headers}")
    text = Path(headers).read_text(encoding="ascii")
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    known |= {"newfstatat": known.get("fstatat", known.get("newfstatat"))}
    numbers = seccomp.numbers(architecture)
    assert {name: known.get(name) for name in numbers} == numbers
    dangerous = {"execve", "socket", "connect", "ptrace", "mount", "unshare", "setns", "bpf", "keyctl", "fchmodat"}
    assert not dangerous & set(numbers)


def test_a_tree_of_any_depth_is_removed(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    here = Path.cwd()
    try:
        os.chdir(top)
        for _ in range(3000):
            Path("d" * 20).mkdir()
            os.chdir("d" * 20)
        Path("file").write_text("x")
    finally:
        os.chdir(here)
    remove_folder(str(top))
    assert not top.exists()
