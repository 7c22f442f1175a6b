"""Sweeps: shared trunks equal separate runs bitwise and save what the accounting says; kills cost nothing finished."""

import dataclasses
import json
import logging
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from killing import finish, kill, n_lines, size, start, wait_until, workers_of
from small_ladders import cells_of, facts, ladder_recipe

from isoflop.errors import IsoflopError, RecipeError
from isoflop.launch import local
from isoflop.model.accounting import flops_per_token
from isoflop.recipe import from_tree, write_recipe
from isoflop.run import only_one
from isoflop.scaling.report.load_figures import read_load
from isoflop.scaling.sweep import run as sweep
from isoflop.scaling.sweep.cells import group_cells
from isoflop.scaling.sweep.family import Family
from isoflop.scaling.sweep.ladder import LadderRecipe, plan_ladder
from isoflop.scaling.sweep.records import read_records
from isoflop.scaling.sweep.run import run_sweep
from isoflop.scaling.sweep.shapes import shape
from isoflop.tokens.shards import TokenSet
from isoflop.training.pretrain.recipe import PretrainRecipe
from isoflop.training.pretrain.workload import run_pretrain

WIDTHS = (8, 16, 24, 32)
RATIOS = (0.125, 0.25, 0.5, 1.0)  # token counts a factor 2 apart


def steps_run(out: Path) -> dict[str, int]:
    """Training steps in the metrics of every trunk and cell: what was really computed."""
    return {
        path.parent.name: sum("loss_nats" in line for line in path.read_text(encoding="utf-8").splitlines())
        for path in sorted(out.glob("*/*/metrics.jsonl"))
    }


@pytest.mark.dist
def test_workers_that_are_threads_of_one_process_make_the_same_records(tmp_path, tiny_tokens, monkeypatch):
    cells = cells_of(ladder_recipe(tiny_tokens, widths=WIDTHS, ratios=RATIOS))
    apart = run_sweep(cells, tmp_path / "apart", study="test", workers=1)
    monkeypatch.setattr(local, "_cards", lambda: 1)
    with local.LocalEngine(4, 1, cuda=True) as engine:
        together = run_sweep(cells, tmp_path / "together", study="test", engine=engine)
    # Last bits of a product may depend on what other threads do: once, on an AVX-512 machine, a loss moved by 1e-4.
    losses = ("loss_nats", "train_loss_nats", "bits_per_byte", "bits_per_byte_by_domain")
    for one, other in zip(together, apart, strict=True):
        ours, theirs = facts(one), facts(other)
        for name in losses:
            assert ours.pop(name) == pytest.approx(theirs.pop(name), rel=3e-3)
        assert ours == theirs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cells_that_share_a_gpu_make_the_records_of_cells_alone(tmp_path, tiny_tokens):
    """Graphs of four streams at once: one buffer that two of them shared would show in the losses."""
    cells = cells_of(
        ladder_recipe(tiny_tokens, widths=WIDTHS, ratios=RATIOS, train={"device": "cuda", "precision": "float32"})
    )
    apart = run_sweep(cells, tmp_path / "apart", study="test", workers=1)
    with local.LocalEngine(4, 1, cuda=True) as engine:
        together = run_sweep(cells, tmp_path / "together", study="test", engine=engine)
    assert [record.loss_nats for record in together] == pytest.approx([record.loss_nats for record in apart], rel=1e-4)


@pytest.mark.dist
def test_four_sizes_by_four_token_counts_save_more_than_half_and_equal_separate_runs_bitwise(tmp_path, tiny_tokens):
    cells = cells_of(ladder_recipe(tiny_tokens, widths=WIDTHS, ratios=RATIOS))
    assert len(cells) == 16 and len(group_cells(cells)) == 4
    seen = []
    records = run_sweep(cells, tmp_path, study="test", workers=2, on_progress=seen.append)
    assert [record.run_id for record in records] == [cell.cell_id for cell in cells]
    held_out = TokenSet.open(tiny_tokens).held_out_sha256
    assert {record.held_out_sha256 for record in records} == {held_out} and len(held_out or "") == 64
    assert all((record.held_out_bytes or 0) > 500 for record in records)
    assert seen[-1].cells_done == 16 and seen[-1].flops_done == pytest.approx(seen[-1].flops_total)

    spent = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    assert spent["saving_ratio"] >= 1.5
    ran = steps_run(tmp_path)
    assert len(ran) == 4 + 16
    per_step = {cell.cell_id: cell.flops_per_token * cell.batch_tokens for cell in cells}
    per_step |= {cell.trunk_id: cell.flops_per_token * cell.batch_tokens for cell in cells}
    really = sum(count * per_step[name] for name, count in ran.items())
    separately = sum(cell.total_flops for cell in cells)
    assert really == pytest.approx(spent["shared_flops"])
    assert separately == pytest.approx(spent["separate_flops"])
    assert separately / really >= 1.5

    for cell, record in zip(cells, records, strict=True):
        alone = run_pretrain(from_tree(cell.recipe, PretrainRecipe), tmp_path / "alone" / cell.cell_id)
        figures = (
            "loss_nats",
            "bits_per_byte",
            "bits_per_byte_by_domain",
            "train_loss_nats",
            "n_tokens",
            "total_flops",
        )
        assert {name: getattr(record, name) for name in figures} == {name: alone[name] for name in figures}
        whole, branch = (
            (tmp_path / kind / cell.cell_id / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            for kind in ("alone", "cells")
        )
        assert branch == whole[cell.branch_step :] and len(branch) == ran[cell.cell_id]
        assert record.trunk_tokens_shared == cell.branch_step * cell.batch_tokens
        assert record.cooled and record.status == "finished" and record.kind == "cell"

    assert not list(tmp_path.glob("cells/*/checkpoints")) and not list(tmp_path.glob("trunks/*/checkpoints"))
    before = (tmp_path / "records.jsonl").read_bytes()
    again = run_sweep(cells, tmp_path, study="test", workers=2)
    assert (tmp_path / "records.jsonl").read_bytes() == before and steps_run(tmp_path) == ran
    assert [facts(record) for record in again] == [facts(record) for record in records]


@pytest.mark.dist
def test_cells_that_differ_in_seed_and_rate_are_trained_as_one_program(tmp_path, tiny_tokens):
    planned = cells_of(ladder_recipe(tiny_tokens))
    seeded = lambda cell, seed: {**cell.sections, "train": {**cell.sections["train"], "seed": seed}}
    cells = [dataclasses.replace(cell, sections=seeded(cell, seed)) for seed in (0, 1) for cell in planned]
    cells += [dataclasses.replace(cell, learning_rate=2 * cell.learning_rate) for cell in planned]
    cells.append(dataclasses.replace(planned[0], learning_rate=1e30))  # diverges and leaves the others alone
    apart = run_sweep(cells, tmp_path / "apart", study="test", stack=1)
    first = run_sweep(cells, tmp_path / "stacked", study="test", stack=4, should_stop=_after(3))
    assert len(first) < len(cells)
    stacked = run_sweep(cells, tmp_path / "stacked", study="test", stack=4)
    assert (
        [record.status for record in stacked] == [record.status for record in apart] == ["finished"] * 12 + ["diverged"]
    )
    for one, other in zip(stacked[:-1], apart[:-1], strict=True):
        assert one.loss_nats == pytest.approx(other.loss_nats, rel=1e-5)
        assert (one.run_id, one.steps, one.n_tokens) == (other.run_id, other.steps, other.n_tokens)
    results = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "stacked").glob("cells/*/result.json")]
    assert sum("stacked" in result for result in results) > 6
    assert "of 3 runs" in " ".join(record.conventions.get("wall_s", "") for record in stacked)


def _after(calls: int):
    """False so many times, then True."""
    asked = iter([False] * calls)
    return lambda: next(asked, True)


@pytest.mark.dist
def test_a_diverged_cell_is_recorded_as_diverged_and_the_others_go_on(tmp_path, tiny_tokens):
    mild = cells_of(ladder_recipe(tiny_tokens, widths=(8,)))
    wild = [dataclasses.replace(cell, learning_rate=1e30) for cell in mild]
    records = run_sweep([*wild, *mild], tmp_path, study="test", workers=2)
    assert [record.status for record in records] == ["diverged"] * 2 + ["finished"] * 2
    for record in records[:2]:
        assert record.loss_nats is None and not record.cooled and record.steps < record.planned_tokens / 256
    assert len(run_sweep([*wild, *mild], tmp_path, study="test")) == 4
    assert len((tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.dist
def test_two_workers_stopped_and_with_a_damaged_branch_point_end_as_one_undisturbed_worker(
    tmp_path, tiny_tokens, caplog
):
    cells = cells_of(ladder_recipe(tiny_tokens, widths=(8,), ratios=RATIOS))
    trunk = tmp_path / "trunks" / str(cells[0].trunk_id) / "checkpoints"
    branch_points = [trunk / f"step_{cell.branch_step:08d}" for cell in cells]
    first = run_sweep(cells, tmp_path, study="test", workers=2, should_stop=branch_points[1].is_dir)
    assert len(first) < 4
    os.truncate(branch_points[1] / "model.safetensors", 10)
    with caplog.at_level(logging.WARNING):
        records = run_sweep(cells, tmp_path, study="test", workers=2)
    assert "the trunk makes it again" in caplog.text
    undisturbed = run_sweep(cells, tmp_path / "whole", study="test", workers=1)
    assert [facts(record) for record in records] == [facts(record) for record in undisturbed]


def test_another_ladder_in_the_same_folder_is_refused(tmp_path, tiny_tokens):
    cells, others = (cells_of(ladder_recipe(tiny_tokens, widths=(d,), ratios=(0.25,))) for d in (8, 16))
    (tmp_path / "ladder.json").write_text(
        json.dumps({"cells": [{"cell_id": cell.cell_id} for cell in others]}), encoding="utf-8"
    )
    with pytest.raises(RecipeError, match=r"holds another ladder .*choose another folder"):
        run_sweep(cells, tmp_path, study="test")


def test_a_damaged_list_of_cells_is_named_and_left_as_it_is(tmp_path, tiny_tokens):
    cells = cells_of(ladder_recipe(tiny_tokens, widths=(8,), ratios=(0.25,)))
    for text in ("", "[]", '{"cells": [1]}', "null"):
        (tmp_path / "ladder.json").write_text(text, encoding="utf-8")
        with pytest.raises(RecipeError, match=r"ladder\.json is (damaged|not JSON) .*delete it to go on"):
            run_sweep(cells, tmp_path, study="test")
        assert (tmp_path / "ladder.json").read_text(encoding="utf-8") == text


def test_records_of_imaging_are_not_added_to(tmp_path, tiny_tokens):
    cells = cells_of(ladder_recipe(tiny_tokens, widths=(8,), ratios=(0.25,)))
    record = json.dumps({"run_id": "crop20", "camera_px": 400, "scores": {}}) + "\n"
    (tmp_path / "records.jsonl").write_text(record, encoding="utf-8")
    with pytest.raises(RecipeError, match="holds a study of isoflop imaging sweep; give another folder"):
        run_sweep(cells, tmp_path, study="test")
    assert (tmp_path / "records.jsonl").read_text(encoding="utf-8") == record
    assert not (tmp_path / "ladder.json").exists()


def test_two_sweeps_in_one_folder_are_refused(tmp_path, tiny_tokens, monkeypatch):
    monkeypatch.setattr(sweep, "only_one", lambda folder, **_: only_one(folder))  # no waiting
    cells = cells_of(ladder_recipe(tiny_tokens, widths=(8,), ratios=(0.25,)))
    with only_one(tmp_path), pytest.raises(RecipeError, match="another process is working in"):
        run_sweep(cells, tmp_path, study="test")


@pytest.mark.dist
def test_a_cell_that_cannot_run_ends_the_sweep_with_its_reason(tmp_path, tiny_tokens):
    (cell,) = cells_of(ladder_recipe(tiny_tokens, widths=(8,), ratios=(0.25,)))
    lost = dataclasses.replace(cell, sections={**cell.sections, "data": {"tokens": str(tmp_path / "gone")}})
    with pytest.raises(IsoflopError, match=r"sweep job .* failed: .*gone has no manifest.json"):
        run_sweep([lost], tmp_path, study="test")


def assert_survives(tmp_path, tiny_tokens, *, kills: list[str], ratios, widths, seed: int) -> None:
    """Kill workers and parents at random moments of a sweep; the records are those of an undisturbed one."""
    checkpoint = {"every_steps": 40, "every_s": 0.0}
    recipe = ladder_recipe(tiny_tokens, widths=widths, ratios=ratios, checkpoint=checkpoint)
    write_recipe(tmp_path / "sweep.toml", recipe)
    cells = cells_of(recipe)
    undisturbed = run_sweep(cells, tmp_path / "whole", study="test", workers=2)
    out, generator, finished = tmp_path / "killed", random.Random(seed), {}
    # moments are lines of metrics, not seconds, so that a machine whose speed changes is hit as often
    n_whole = sum(map(n_lines, (tmp_path / "whole").glob("*/*/metrics.jsonl")))
    moments = sorted(generator.sample(range(n_whole * 3 // 5), len(kills)))
    arguments = ("sweep", tmp_path / "sweep.toml", "--out", out, "--no-calibrate")
    process, hit = start(*arguments), 0
    for kind, moment in zip(kills, moments, strict=True):
        before = sum(map(size, out.glob("*/*/metrics.jsonl")))

        def reached(size_before=before, n=moment) -> bool:
            paths = list(out.glob("*/*/metrics.jsonl"))
            return sum(map(size, paths)) != size_before and sum(map(n_lines, paths)) > n

        if not wait_until(reached, process) or process.poll() is not None:
            break
        hit += 1
        if kind == "parent":
            kill(process)
            process = start(*arguments)
        elif workers := workers_of(process.pid):
            os.kill(generator.choice(workers), signal.SIGKILL)
        for path in out.glob("cells/*/result.json"):
            finished.setdefault(path, path.stat().st_mtime_ns)
    assert hit == len(kills), f"{hit} of {len(kills)} kills, then it was done"
    code, errors = finish(process)
    if (
        "cells failed" in errors
    ):  # the same long job was hit four times before its next checkpoint: the one clear error, and on it goes
        code, errors = finish(start(*arguments))
    assert code == 0, errors
    records = {record.run_id: record for record in read_records(out / "records.jsonl")}
    assert [facts(records[cell.cell_id]) for cell in cells] == [facts(record) for record in undisturbed]
    assert len((out / "records.jsonl").read_text(encoding="utf-8").splitlines()) == len(cells)
    assert all(path.stat().st_mtime_ns == moment for path, moment in finished.items())  # never repeated
    for path in (tmp_path / "whole").glob("*/*/metrics.jsonl"):
        assert (out / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


@pytest.mark.dist
def test_a_sweep_survives_the_death_of_a_worker_and_of_itself(tmp_path, tiny_tokens):
    seed = random.randrange(10**6)
    assert_survives(
        tmp_path, tiny_tokens, kills=["worker", "parent"], ratios=(1.0, 2.0, 4.0), widths=(8, 16), seed=seed
    )


@pytest.mark.slow
@pytest.mark.dist
def test_a_sweep_survives_ten_kills_at_random_moments(tmp_path, tiny_tokens):
    seed = random.randrange(10**6)
    kills = ["worker", "parent"] * 5
    assert_survives(tmp_path, tiny_tokens, kills=kills, ratios=(4.0, 8.0, 16.0, 32.0), widths=(8, 16, 24), seed=seed)


@pytest.mark.dist
def test_control_c_on_a_sweep_saves_exits_with_130_and_leaves_no_process(tmp_path, tiny_tokens):
    recipe = ladder_recipe(tiny_tokens, widths=(8,), ratios=(40.0,))
    write_recipe(tmp_path / "sweep.toml", recipe)
    out = tmp_path / "out"
    process = start("sweep", tmp_path / "sweep.toml", "--out", out, "--no-calibrate")
    assert wait_until(lambda: any(map(size, out.glob("*/*/metrics.jsonl"))), process)
    workers = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group gets it
    code, errors = finish(process)
    assert code == 130 and "Traceback" not in errors, errors
    assert list(out.glob("cells/*/checkpoints/step_*"))  # what was under way was saved
    assert workers and not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_the_record_of_a_mixture_says_what_it_is_made_of():
    family = {"experts": {"n_experts": 16, "n_active": 3, "granularity": 4.0}, "latent": {}, "mtp_depth": 1}
    recipe = {"ladder": {"budgets": [1e12], "n_sizes": 3}, "family": family}
    recipe |= {"hyper": {"learning_rate": 0.003, "batch_tokens": 4096}}
    cell = plan_ladder(from_tree(recipe, LadderRecipe)).cells[0]
    keys = ("n_tokens", "flops_per_token", "flops_per_token_exact", "total_flops", "total_flops_exact", "wall_s")
    keys += ("train_loss_nats", "unique_tokens", "epochs", "tokens_per_s", "threads")
    texts = ("device", "tokenizer_sha256", "data_sha256", "commit", "started_at", "finished_at", "numerics")
    load = {"max_violation": [0.1]}
    result = {**dict.fromkeys(keys, 1.0), **dict.fromkeys(texts, "x"), "start_step": 0, "step": 1, "expert_load": load}
    record = cell.record({**result, "status": "finished", "loss_nats": 2.0}, "study")
    assert cell.config.experts is not None and cell.config.latent is not None
    assert (record.n_experts, record.n_active, record.n_shared, record.affinity) == (16, 3, 1, "sigmoid")
    assert record.d_expert == cell.config.experts.d_expert and record.activated_share == 4 / 17
    assert record.d_kv_latent == cell.config.latent.d_kv_latent and record.mtp_depth == 1
    assert record.n_params_active < record.n_params_total and record.expert_load == load
    assert record.conventions["family"].startswith("16 experts") and "router" in record.conventions["experts"]


@pytest.mark.dist
def test_a_sweep_of_a_mixture_shares_trunks_and_records_how_its_experts_were_used(tmp_path, tiny_tokens):
    dense = ladder_recipe(tiny_tokens, train={"balance": {"report_every": 2}})
    experts = {"n_experts": 8, "n_active": 2, "n_shared": 1, "granularity": 2.0}
    family = from_tree({"experts": experts, "latent": {}}, Family)
    sizes = tuple(float(flops_per_token(shape(d, vocab_size=512, seq_len=16, family=family))) for d in (8, 16))
    recipe = dataclasses.replace(dense, family=family, ladder=dataclasses.replace(dense.ladder, sizes=sizes))
    cells = cells_of(recipe)
    assert len(cells) == 4 and len(group_cells(cells)) == 2
    records = run_sweep(cells, tmp_path, study="test", workers=2)
    for cell, record in zip(cells, records, strict=True):
        assert record.status == "finished" and record.n_experts == 8 and record.d_kv_latent
        assert record.total_flops == cell.total_flops
        layers = cell.config.n_layers - 1
        assert len(record.expert_load["max_violation"]) == layers and record.max_violation_global > 0
    metrics = (tmp_path / "trunks" / cells[0].trunk_id / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    load = read_load([json.loads(line) for line in metrics])
    assert load is not None and load["max_violation"].shape[1] == cells[0].config.n_layers - 1
