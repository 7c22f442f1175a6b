"""Metrics files that resume to the byte, and the peak of a device."""

import json

import pytest
import torch

from isoflop.training.monitor import MetricsFile, measured_matmul_flops_per_s, peak_flops_per_s


def write(path, steps, resume_step=0):
    file = MetricsFile(path, resume_step=resume_step)
    file.write([{"step": step, "loss_nats": 10.0 - step} for step in steps])
    file.close()


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_resumed_file_is_cut_back_to_the_step_it_resumes_from(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    write(path, range(1, 11))
    undisturbed = path.read_bytes()
    write(path, range(5, 11), resume_step=4)
    assert path.read_bytes() == undisturbed


def test_the_validation_of_the_resumed_step_stays_and_later_ones_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, resume_step=0)
    rows = [{"step": 4, "loss_nats": 1.0}, {"step": 4, "validation": {}}, {"step": 5, "loss_nats": 1.0}]
    file.write([*rows, {"step": 5, "validation": {}}])
    file.close()
    MetricsFile(path, resume_step=4).close()
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == rows[:2]


@pytest.mark.parametrize("torn", [b'{"step": 4, "loss_n', b'{"step": 4, "loss_nats": 6.0}', b"\x00\x00\x00\n"])
def test_what_a_kill_left_of_a_line_and_all_after_it_is_cut_off(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3])
    with path.open("ab") as file:
        file.write(torn)
    write(path, [4], resume_step=4)
    assert steps_in(path) == [1, 2, 3, 4]


def test_a_run_from_the_start_forgets_an_old_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3])
    write(path, [1], resume_step=0)
    assert steps_in(path) == [1]


def test_the_steps_of_a_file_are_its_lines_without_validations(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3])
    file = MetricsFile(path, resume_step=3)
    file.write([{"step": 3, "validation": {"loss_nats": 99.0}}])
    assert [line["loss_nats"] for line in file.steps()] == [9.0, 8.0, 7.0]
    file.close()


def test_the_peak_of_a_cpu_is_measured_and_says_so():
    cpu = torch.device("cpu")
    peak, source = peak_flops_per_s(cpu, torch.float32)
    assert 1e8 < peak < 1e14 and "measured" in source
    small = measured_matmul_flops_per_s(cpu, torch.float32, size=64, seconds=0.005)
    assert small > 0
