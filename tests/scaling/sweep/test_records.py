"""Run records: what a killed writer leaves behind, repeated runs, unknown fields."""

import json
import logging
import math

import numpy as np
import pytest

from isoflop.errors import DataError
from isoflop.recipe import write_json
from isoflop.scaling.sweep.records import RunRecord, append_record, read_records


def test_a_record_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "records.jsonl"
    record = RunRecord(
        "a", budget_flops=1e12, n_tokens=np.int64(4096), loss_nats=np.float64(2.5), extra={"note": "x\u2028y"}
    )
    append_record(path, record)
    assert read_records(path) == [record]
    assert path.read_bytes().count(b"\n") == 1


def test_unknown_fields_are_kept_and_written_back_flat(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"run_id": "a", "future_field": {"x": 1}}\n')
    (record,) = read_records(path)
    assert record.extra == {"future_field": {"x": 1}}
    assert record.to_dict()["future_field"] == {"x": 1}


def test_the_last_line_of_a_run_wins(tmp_path):
    path = tmp_path / "records.jsonl"
    for run, loss in (("a", 3.0), ("b", 2.0), ("a", 1.0)):
        append_record(path, RunRecord(run, loss_nats=loss))
    assert {record.run_id: record.loss_nats for record in read_records(path)} == {"a": 1.0, "b": 2.0}


def test_a_diverged_loss_is_stored_as_missing(tmp_path):
    path = tmp_path / "records.jsonl"
    append_record(path, RunRecord("a", status="diverged", loss_nats=math.nan, conventions={"worst": math.inf}))
    (record,) = read_records(path)
    assert record.loss_nats is None
    assert record.status == "diverged"


def test_every_cut_of_the_last_line_is_survived_by_reader_and_writer(tmp_path, caplog):
    path = tmp_path / "records.jsonl"
    append_record(path, RunRecord("a", loss_nats=1.0))
    whole = path.read_bytes()
    append_record(path, RunRecord("b", loss_nats=2.0))
    both = path.read_bytes()
    caplog.set_level(logging.WARNING)
    for end in range(len(whole) + 1, len(both)):
        path.write_bytes(both[:end])
        names = [record.run_id for record in read_records(path)]
        assert names == (["a", "b"] if end == len(both) - 1 else ["a"]), both[:end]
        append_record(path, RunRecord("c"))
        names = [record.run_id for record in read_records(path)]
        assert names == (["a", "b", "c"] if end == len(both) - 1 else ["a", "c"]), both[:end]
    assert "killed writer" in caplog.text


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"run_id": "a"}\n{"run_id": \n{"run_id": "b"}\n')
    with pytest.raises(DataError, match="line 2 is not JSON"):
        read_records(path)
    path.write_text(json.dumps({"loss_nats": 1}) + "\n")
    with pytest.raises(DataError, match="run_id"):
        read_records(path)
    with pytest.raises(DataError, match="does not exist"):
        read_records(tmp_path / "none.jsonl")


def test_fields_of_a_mixture_are_kept_and_absent_in_dense_and_imported_records(tmp_path):
    path = tmp_path / "records.jsonl"
    mixture = RunRecord("a", n_experts=64, n_active=6, n_shared=2, d_expert=88, d_kv_latent=64, n_params_active=5)
    append_record(path, mixture)
    append_record(path, RunRecord("b", n_params_total=7))
    assert read_records(path) == [mixture, RunRecord("b", n_params_total=7)]
    assert set(json.loads(path.read_text().splitlines()[1])).isdisjoint({"n_experts", "d_kv_latent", "expert_load"})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("flops_per_token", "a", r"record r1: flops_per_token = 'a' must be a number; repair or remove its line"),
        ("bits_per_byte", -1, r"record r1: bits_per_byte = -1 must be above 0"),
        ("budget_flops", 0, r"record r1: budget_flops = 0 must be above 0"),
        ("n_layers", "x", r"record r1: n_layers = 'x' must be a whole number"),
        ("n_tokens", "x", r"record r1: n_tokens = 'x' must be a number"),
        ("total_flops", -1, r"record r1: total_flops = -1 must be at least 0"),
        ("status", 3, r"record r1: status = 3 must be text"),
    ],
)
def test_a_field_of_a_wrong_type_or_without_sense_is_named(tmp_path, field, value, message):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"run_id": "r1", field: value}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_records(path)


def test_records_are_not_appended_to_something_else(tmp_path):
    write_json(tmp_path / "laws.json", {"law_set": 1})
    (tmp_path / "plan.toml").write_text("[model]\n", encoding="utf-8")
    for name in ("plan.toml", "laws.json"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(DataError, match=rf"{name} has something else than records; give another file"):
            append_record(tmp_path / name, RunRecord("r1"))
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(DataError, match=r"is a folder; give the records.jsonl of a sweep"):
        read_records(tmp_path)


def test_counts_with_a_fraction_are_kept_as_they_are(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"run_id": "r1", "planned_tokens": 1781246.5, "n_tokens": 2e6}) + "\n", encoding="utf-8")
    (record,) = read_records(path)
    assert (record.planned_tokens, record.n_tokens) == (1781246.5, 2_000_000)


def test_a_run_that_diverged_at_once_is_a_record_too(tmp_path):
    path = tmp_path / "records.jsonl"
    append_record(path, RunRecord("r1", status="diverged", n_tokens=0, total_flops=0.0, loss_nats=math.inf))
    (record,) = read_records(path)
    assert (record.status, record.total_flops, record.loss_nats) == ("diverged", 0.0, None)
