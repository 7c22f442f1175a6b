"""Job files at work: signals reach the run, what was stopped goes on, and torchrun trains what a plain run trains."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import ENVIRONMENT, finish, n_lines, wait_until
from pretended import STAYS, scripts

from isoflop.launch.job import Options, plan_job
from isoflop.launch.job_file import job_file
from isoflop.recipe import write_recipe

WORKS = "trap 'exit {code}' TERM\ntouch {begun}\nwhile :; do sleep 0.05; done"
"""A run that ends with this code once it is asked to stop."""
SRUN = """
while [[ $1 == --* ]]; do shift; done
set -m
"$@" &
trap 'kill -KILL -- -$!; exit 137' TERM
wait
"""
"""SIGTERM to srun is SIGKILL to its tasks."""


@pytest.fixture
def begun(cluster, tmp_path):
    """Start a script whose run takes until it is asked to stop; returns it at work."""

    def start(script: str, code: int = 130, **environment: str) -> subprocess.Popen[str]:
        cluster.put("isoflop", WORKS.format(code=code, begun=tmp_path / "begun"))
        process = cluster.start(script, **environment)
        assert wait_until((tmp_path / "begun").exists, process)
        return process

    return start


@pytest.mark.dist
@pytest.mark.parametrize(
    "sent, code, requeue, ends",
    [
        (signal.SIGUSR1, 130, 0, 0),
        (signal.SIGUSR1, 143, 0, 0),
        (signal.SIGUSR1, 130, 1, 130),
        (signal.SIGUSR1, 0, 0, 0),
        (signal.SIGUSR1, 2, 0, 2),
        (signal.SIGTERM, 130, 0, 130),
    ],
)
def test_slurm_queues_a_job_again_at_the_time_limit_and_not_after_scancel(
    made, cluster, begun, sent, code, requeue, ends
):
    cluster.put("scontrol", f"exit {requeue}")
    process = begun(made("slurm"), code, SLURM_JOB_ID="7")
    process.send_signal(sent)
    assert finish(process)[0] == ends
    again = sent == signal.SIGUSR1 and code in (130, 143)
    assert cluster.calls("scontrol") == [["requeue", "7"]] * again


@pytest.mark.dist
def test_slurm_hands_on_how_a_run_ended_by_itself(made, cluster):
    for code in (0, 1, 2):
        cluster.put("isoflop", f"exit {code}")
        assert cluster.run(made("slurm"), SLURM_JOB_ID="7")[0] == code
    assert len(cluster.calls("isoflop")) == 3 and cluster.calls("scontrol") == []


@pytest.mark.dist
def test_a_sweep_on_two_slurm_nodes_starts_ray_on_both_and_leaves_nothing_behind(made, cluster, begun):
    with socket.socket() as head:  # the worker waits for the head's port
        job_id = next(number for number in range(7000, 9000) if _bound(head, 20_000 + number))
        head.listen()
        cluster.put("ray", STAYS)
        cluster.put("srun", SRUN)
        process = begun(made("slurm", "sweep", nodes=2, gpus_per_node=8), SLURM_JOB_ID=str(job_id))
        assert wait_until(lambda: len([c for c in cluster.calls("ray") if c[0] == "start"]) == 2, process)
    process.send_signal(signal.SIGUSR1)
    code, errors = finish(process)
    assert code == 0, errors
    assert cluster.calls("scontrol") == [["requeue", str(job_id)]]
    (srun,) = cluster.calls("srun")
    assert srun[:4] == ["--nodes=1", "--ntasks=1", "--relative=1", "--cpus-per-task=64"]
    ours = ["--num-cpus=64", "--num-gpus=8", "--disable-usage-stats", "--block"]
    at = f"{socket.gethostname()}:{20_000 + job_id}"
    starts = [call for call in cluster.calls("ray") if call[0] == "start"]
    head_of = ["--head", f"--port={20_000 + job_id}", "--include-dashboard=false", f"--temp-dir=/tmp/ray-{job_id}"]
    assert sorted(starts) == [["start", f"--address={at}", *ours], ["start", *head_of, *ours]]
    with pytest.raises(ProcessLookupError):  # nobody is left of its session
        while True:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


@pytest.mark.dist
@pytest.mark.parametrize("target", ["kubernetes", "kubeflow", "skypilot"])
def test_the_node_of_rank_0_saves_when_it_is_asked_and_the_others_join_it(made, cluster, begun, tmp_path, target):
    (script,) = scripts(target, made(target, "sweep", nodes=2, workdir=str(tmp_path)))
    cluster.put("ray", STAYS)
    ranks = ("JOB_COMPLETION_INDEX", "PET_NODE_RANK", "SKYPILOT_NODE_RANK")
    heads = {"PET_MASTER_ADDR": "127.0.0.1", "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2"}
    process = begun(script, **dict.fromkeys(ranks, "0"), **heads)
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    assert code == 130, errors
    if target == "kubernetes":
        script = script.replace("head=recipe-0.recipe", "head=127.0.0.1")  # a name that only its cluster knows
    with socket.socket() as head:
        port = next(number for number in range(20_000, 29_000) if _bound(head, number))
        head.listen()
        other = cluster.start(script.replace("port=6379", f"port={port}"), **dict.fromkeys(ranks, "1"), **heads)
        joined = ["start", f"--address=127.0.0.1:{port}"]
        assert wait_until(lambda: any(call[:2] == joined for call in cluster.calls("ray")), other)
        other.send_signal(signal.SIGTERM)
        assert finish(other)[0] == 143
    with pytest.raises(ProcessLookupError):
        while True:
            os.killpg(other.pid, 0)
            time.sleep(0.05)
    assert len(cluster.calls("isoflop")) == 1


@pytest.mark.dist
@pytest.mark.parametrize("target", ["kubeflow", "skypilot"])
def test_a_worker_ends_well_when_the_head_is_gone(made, cluster, tmp_path, target):
    (script,) = scripts(target, made(target, "sweep", nodes=2, workdir=str(tmp_path)))
    cluster.put("ray", "exit 1")
    there = {"PET_MASTER_ADDR": "127.0.0.1", "SKYPILOT_NODE_IPS": "127.0.0.1"}
    with socket.socket() as head:
        port = next(number for number in range(20_000, 29_000) if _bound(head, number))
        head.listen()
        script = script.replace("port=6379", f"port={port}")
        assert cluster.run(script, PET_NODE_RANK="1", SKYPILOT_NODE_RANK="1", **there)[0] == 0
    assert cluster.calls("ray")[-1][:2] == ["start", f"--address=127.0.0.1:{port}"]


@pytest.mark.dist
def test_torchrun_starts_a_killed_run_again_and_ends_with_the_numbers_of_a_plain_one(tmp_path, tiny_recipe):
    recipe = tiny_recipe(train={"n_tokens": 64 * 400}, checkpoint={"every_steps": 20})
    write_recipe(tmp_path / "recipe.toml", recipe)
    job = plan_job("torchrun", tmp_path / "recipe.toml", (), Options(gpus_per_node=0, out=str(tmp_path / "run")))
    (tmp_path / "job.sh").write_text(job_file(job), encoding="utf-8")
    metrics = tmp_path / "run" / "metrics.jsonl"

    first = _torchrun(tmp_path / "job.sh")
    assert wait_until(lambda: n_lines(metrics) > 40, first)
    (worker,) = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text(encoding="ascii").split()
    os.kill(int(worker), signal.SIGKILL)  # torchrun starts another one
    assert wait_until(lambda: n_lines(metrics) > 120, first)
    first.send_signal(signal.SIGTERM)
    code, errors = finish(first)
    assert code != 0 and "saving and stopping" in errors and not (tmp_path / "run" / "result.json").exists()
    code, errors = finish(_torchrun(tmp_path / "job.sh"))
    assert code == 0, errors

    plain = [sys.executable, "-m", "isoflop", "train", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "plain")]
    subprocess.run(plain, env=ENVIRONMENT, capture_output=True, check=True)
    runs = [tmp_path / name for name in ("run", "plain")]
    ends = [json.loads((run / "result.json").read_text(encoding="utf-8")) for run in runs]
    for key in ("status", "step", "loss_nats", "train_loss_nats"):
        assert ends[0][key] == ends[1][key]
    assert (runs[0] / "metrics.jsonl").read_bytes() == (runs[1] / "metrics.jsonl").read_bytes()


def _torchrun(script: Path) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(script)],
        env={**ENVIRONMENT, "PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _bound(found: socket.socket, port: int) -> bool:
    try:
        found.bind(("", port))
    except OSError:
        return False
    return True
