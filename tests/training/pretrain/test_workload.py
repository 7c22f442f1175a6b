"""Whole runs: resumed equals undisturbed to the byte, branches equal uninterrupted runs, bad input is said."""

import dataclasses
import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from killing import finish, killed_after, size, start, wait_until
from safetensors.torch import load_file

from isoflop.errors import CheckpointError, DataError, RecipeError
from isoflop.model.transformer import Transformer
from isoflop.recipe import read_tree, to_toml, write_recipe
from isoflop.tokens.shards import TokenSet
from isoflop.training import checkpoint
from isoflop.training.load_run import read_sizes, tokenizer_sha256_of
from isoflop.training.optim import adamw
from isoflop.training.pretrain.recipe import check, with_train
from isoflop.training.pretrain.workload import LanguageModel, check_layers, choose_device, run_pretrain, trajectory_of
from isoflop.training.schedule import cooldown_start

FIGURES = ("status", "step", "n_tokens", "start_step", "train_loss_nats", "loss_nats", "bits_per_byte")
DETAILS = ("bits_per_byte_by_domain", "trajectory", "total_flops", "total_flops_exact", "epochs", "unique_tokens")


def figures_of(result):
    return {key: result[key] for key in (*FIGURES, *DETAILS)}


def weights_of(run_dir: Path):
    return load_file(sorted((run_dir / "checkpoints").glob("step_*"))[-1] / "model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = weights_of(a), weights_of(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_same_run(a: Path, b: Path) -> None:
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    assert_same_weights(a, b)
    read = [json.loads((folder / "result.json").read_text(encoding="utf-8")) for folder in (a, b)]
    assert figures_of(read[0]) == figures_of(read[1])


def stopping_after(n_calls: int):
    calls = iter(range(10**9))
    return lambda: next(calls) >= n_calls


@pytest.mark.parametrize("schedule", ["multi_step", "cosine", "constant_cooldown"])
def test_a_run_stopped_twice_and_resumed_is_the_undisturbed_one(tmp_path, tiny_recipe, schedule):
    recipe = tiny_recipe(train={"schedule": schedule}, validate={"every_steps": 7})
    run_pretrain(recipe, tmp_path / "whole")
    for n_calls in (4, 20):
        assert run_pretrain(recipe, tmp_path / "parts", should_stop=stopping_after(n_calls))["status"] == "interrupted"
    run_pretrain(recipe, tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_finished_run_is_not_repeated_and_another_recipe_in_its_folder_is_refused(tmp_path, tiny_recipe):
    first = run_pretrain(tiny_recipe(), tmp_path)
    changed = (tmp_path / "metrics.jsonl").stat().st_mtime_ns
    assert run_pretrain(tiny_recipe(), tmp_path) == json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (tmp_path / "metrics.jsonl").stat().st_mtime_ns == changed and first["status"] == "finished"
    before = (tmp_path / "recipe.toml").read_bytes()
    with pytest.raises(CheckpointError, match=r"another recipe or other data.*recipe.toml beside it"):
        run_pretrain(tiny_recipe(train={"seed": 1}), tmp_path)
    assert (tmp_path / "recipe.toml").read_bytes() == before  # the file that the message points to is still there
    with pytest.raises(CheckpointError, match="at step 30 of a run of 30 steps, this recipe has 31"):
        run_pretrain(tiny_recipe(train={"n_tokens": 31 * 64}), tmp_path)


def test_a_damaged_result_is_named_and_the_run_ends_again_without_it(tmp_path, tiny_recipe):
    first = run_pretrain(tiny_recipe(), tmp_path)
    for text in ("", '{"status": "fin', "[1]", "3"):
        (tmp_path / "result.json").write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"result\.json is (damaged|not JSON) .*delete it"):
            run_pretrain(tiny_recipe(), tmp_path)
    (tmp_path / "result.json").unlink()
    assert run_pretrain(tiny_recipe(), tmp_path)["loss_nats"] == first["loss_nats"]


def test_a_run_does_not_change_its_number_format_with_the_device(tmp_path, tiny_recipe, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("isoflop.training.pretrain.workload.choose_dtype", lambda *_: torch.bfloat16)
        run_pretrain(tiny_recipe(checkpoint={"every_steps": 5}), tmp_path, should_stop=stopping_after(12))
    with pytest.raises(
        CheckpointError, match=r"was trained in bfloat16, here it would go on in float32.*another folder"
    ):
        run_pretrain(tiny_recipe(), tmp_path)


def test_a_run_keeps_its_tokenizer_and_whole_paths(tmp_path, tiny_recipe, tiny_tokens):
    run_pretrain(tiny_recipe(), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "tokenizer" / name).read_bytes() == (tiny_tokens / name).read_bytes()
    assert Path(read_tree(tmp_path / "recipe.toml")["data"]["tokens"]) == tiny_tokens.resolve()
    assert tokenizer_sha256_of(tmp_path) == json.loads((tmp_path / "result.json").read_text())["tokenizer_sha256"]


def test_weights_of_a_run_with_another_tokenizer_are_no_start(tmp_path, tiny_recipe):
    run_pretrain(tiny_recipe(), tmp_path / "first")
    found = checkpoint.newest(tmp_path / "first" / "checkpoints")
    assert found is not None
    sha256 = json.loads((found / "state.json").read_text())["sha256"]["model.safetensors"]
    kept = tmp_path / "first" / "tokenizer" / "tokenizer_config.json"
    tree = json.loads(kept.read_text())
    kept.write_text(json.dumps({**tree, "tokenizer_sha256": "0" * 64}))
    recipe = tiny_recipe(initial={"checkpoint": str(found), "model_sha256": sha256})
    with pytest.raises(CheckpointError, match=r"was trained with 000000000000: the folder was built anew"):
        run_pretrain(recipe, tmp_path / "second")


def test_a_corrupted_newest_checkpoint_is_named_and_the_run_ends_the_same(tmp_path, tiny_recipe, caplog):
    recipe = tiny_recipe(checkpoint={"every_steps": 5})
    run_pretrain(recipe, tmp_path / "whole")
    run_pretrain(recipe, tmp_path / "hurt", should_stop=stopping_after(17))
    newest = sorted((tmp_path / "hurt" / "checkpoints").glob("step_*"))[-1]
    assert newest.name == "step_00000018"
    os.truncate(newest / "optimizer.safetensors", 50)
    with caplog.at_level(logging.WARNING):
        run_pretrain(recipe, tmp_path / "hurt")
    assert "step_00000018" in caplog.text
    assert_same_run(tmp_path / "hurt", tmp_path / "whole")


def test_when_all_checkpoints_are_damaged_one_error_says_so(tmp_path, tiny_recipe):
    recipe = tiny_recipe(checkpoint={"every_steps": 5})
    run_pretrain(recipe, tmp_path, should_stop=stopping_after(17))
    for weights in tmp_path.glob("checkpoints/*/model.safetensors"):
        weights.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"all 2 checkpoints in .* are damaged"):
        run_pretrain(recipe, tmp_path)


@pytest.mark.parametrize("cooldown_fraction", [0.2, 0.5])
def test_a_branch_off_a_longer_trunk_equals_the_uninterrupted_run_bitwise(tmp_path, tiny_recipe, cooldown_fraction):
    train = {"cooldown_fraction": cooldown_fraction}
    long, short = (tiny_recipe(train={**train, "n_tokens": n_steps * 64}) for n_steps in (60, 30))
    branch = cooldown_start(30, cooldown_fraction)
    trunk = run_pretrain(long, tmp_path / "trunk", stop_at=45, keep_steps=frozenset({branch}))
    assert (trunk["status"], trunk["step"]) == ("stopped", 45)
    start_from = tmp_path / "trunk" / "checkpoints" / f"step_{branch:08d}"
    whole = run_pretrain(short, tmp_path / "whole")
    for name in ("branch", "stopped"):  # the branch itself may be interrupted too
        if name == "stopped":
            run_pretrain(short, tmp_path / name, start_from=start_from, should_stop=stopping_after(2))
        result = run_pretrain(short, tmp_path / name, start_from=start_from)
        assert result["start_step"] == branch
        expected = {**figures_of(whole), "start_step": branch}
        assert figures_of(result) == expected
        assert_same_weights(tmp_path / name, tmp_path / "whole")
        lines = (tmp_path / "whole" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines() == lines[branch:]


def test_a_branch_beyond_its_cooldown_or_off_a_damaged_trunk_is_refused(tmp_path, tiny_recipe):
    long, short = (tiny_recipe(train={"n_tokens": n_steps * 64}) for n_steps in (60, 30))
    run_pretrain(long, tmp_path / "trunk", stop_at=26, keep_steps=frozenset({24}))
    folder = tmp_path / "trunk" / "checkpoints"
    with pytest.raises(CheckpointError, match=r"up to the cooldown of the shorter one \(step 24\)"):
        run_pretrain(short, tmp_path / "late", start_from=folder / "step_00000026")
    with pytest.raises(CheckpointError, match="another recipe"):
        run_pretrain(with_train(short, seed=5), tmp_path / "other", start_from=folder / "step_00000024")
    os.truncate(folder / "step_00000024" / "model.safetensors", 10)
    with pytest.raises(CheckpointError, match=r"cannot start from .*does not match its sha256.*train that trunk again"):
        run_pretrain(short, tmp_path / "hurt", start_from=folder / "step_00000024")


def test_micro_batches_of_the_model_give_the_gradient_of_the_whole_batch(tiny_recipe, tiny_tokens):
    gradients = []
    for micro_batch in (0, 1, 2):
        recipe = tiny_recipe(train={"micro_batch": micro_batch})
        workload, model = LanguageModel(recipe, TokenSet.open(tiny_tokens)), Transformer(recipe.model)
        model.initialise(torch.Generator().manual_seed(0))
        parts = workload.batch(3)
        assert len(parts) == (4 // micro_batch if micro_batch else 1)
        for part in parts:
            (workload.loss_sum(model, part) / workload.tokens_per_step).backward()
        gradients.append([p.grad for p in model.parameters()])
    for others in gradients[1:]:
        for found, wanted in zip(others, gradients[0], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_the_whole_run_hardly_depends_on_the_micro_batch(tmp_path, tiny_recipe):
    losses = [run_pretrain(tiny_recipe(train={"micro_batch": m}), tmp_path / str(m))["bits_per_byte"] for m in (0, 1)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_model_learns_one_repeated_batch_by_heart(tiny_recipe, tiny_tokens):
    recipe = tiny_recipe(model={"d_model": 16, "d_head": 8, "d_ff": 32})
    workload, model = LanguageModel(recipe, TokenSet.open(tiny_tokens)), Transformer(recipe.model)
    model.initialise(torch.Generator().manual_seed(0))
    optimizer = adamw(model, learning_rate=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    (part,) = workload.batch(0)
    losses = []
    for _ in range(150):
        loss = workload.loss_sum(model, part) / workload.tokens_per_step
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 4.0 and losses[-1] < 0.2


def test_training_lowers_the_validation_loss(tmp_path, tiny_recipe):
    few, many = (
        run_pretrain(tiny_recipe(train={"n_tokens": n * 64}), tmp_path / str(n))["bits_per_byte"] for n in (2, 300)
    )
    assert many < 0.8 * few


def test_a_huge_learning_rate_is_recorded_as_diverged(tmp_path, tiny_recipe):
    recipe = tiny_recipe(train={"learning_rate": 1e30, "warmup_steps": 0}, checkpoint={"every_steps": 1})
    result = run_pretrain(recipe, tmp_path)
    assert result["status"] == "diverged" and result["step"] < 30 and "bits_per_byte" not in result
    again = run_pretrain(recipe, tmp_path)
    assert (again["status"], again["step"]) == ("diverged", result["step"])


def test_the_trajectory_names_what_decides_the_numbers_and_nothing_else(tiny_recipe, tiny_tokens):
    tokens, recipe = TokenSet.open(tiny_tokens), tiny_recipe()
    base = trajectory_of(recipe, tokens)
    for same in ({"threads": 2}, {"device": "auto"}, {"n_tokens": 6400}, {"cooldown_fraction": 0.5}):
        assert trajectory_of(with_train(recipe, **same), tokens) == base, same
    for other in ({"seed": 1}, {"learning_rate": 0.02}, {"batch_tokens": 128}, {"beta2": 0.99}, {"warmup_steps": 4}):
        assert trajectory_of(with_train(recipe, **other), tokens) != base, other
    fixed = with_train(recipe, schedule="cosine")
    assert trajectory_of(with_train(fixed, n_tokens=6400), tokens) != trajectory_of(fixed, tokens)


@pytest.mark.parametrize(
    "section, values, message",
    [
        ("train", {"batch_tokens": 70}, r"train.batch_tokens = 70 must be a multiple of .* = 16; nearest: 64 or 80"),
        ("train", {"micro_batch": 3}, "train.micro_batch = 3 must divide the 4 sequences of a batch"),
        ("train", {"n_tokens": 63}, "train.n_tokens = 63 is less than one optimizer step .* = 64; raise the budget"),
        ("train", {"cooldown_fraction": 0.0}, "train.cooldown_fraction = 0.0 must be above 0 and at most 1"),
        ("train", {"learning_rate": 0.0}, "train.learning_rate = 0.0 must be above 0"),
        ("train", {"device": "gpu7"}, "train.device = 'gpu7' is not a device; use auto, cpu, cuda or cuda:1"),
        ("data", {"tokens": ""}, "data.tokens = .* must name a tokens folder; build one with isoflop tokens"),
        ("checkpoint", {"keep": 0}, "checkpoint.keep = 0 must be at least 1"),
    ],
)
def test_values_that_contradict_each_other_are_refused_with_a_way_out(tmp_path, tiny_recipe, section, values, message):
    with pytest.raises(RecipeError, match=message):
        run_pretrain(tiny_recipe(**{section: values}), tmp_path / "run")


@pytest.mark.parametrize(
    "section, values, message",
    [
        ("data", {"tokenizer_sha256": "0" * 64}, "the recipe is for another tokenizer.*plan again"),
        ("model", {"vocab_size": 300}, "model.vocab_size = 300 .* has 512 rows .*; set model.vocab_size = 512"),
        ("data", {"tokens": "no/such/folder"}, "no/such/folder has no manifest.json; make it with: isoflop tokens"),
    ],
)
def test_a_recipe_for_other_tokens_is_refused(tmp_path, tiny_recipe, section, values, message):
    with pytest.raises(DataError, match=message):
        run_pretrain(tiny_recipe(**{section: values}), tmp_path / "run")


def test_the_recipe_that_is_checked_is_not_changed(tiny_recipe):
    recipe = tiny_recipe()
    before = dataclasses.asdict(recipe)
    check(recipe)
    assert dataclasses.asdict(recipe) == before and recipe.n_steps() == 30


def long_recipe(tiny_recipe, path: Path, n_steps: int = 600, every_steps: int = 15):
    """Long enough for a kill to land in the middle, saving often enough for it to land in a saving."""
    recipe = tiny_recipe(train={"n_tokens": n_steps * 64}, checkpoint={"every_steps": every_steps})
    write_recipe(path, recipe)
    return recipe


def assert_survives(tmp_path, tiny_recipe, n_kills: int, seed: int, n_steps: int) -> None:
    recipe = long_recipe(tiny_recipe, tmp_path / "recipe.toml", n_steps)
    run_pretrain(recipe, tmp_path / "whole")
    arguments = ("train", tmp_path / "recipe.toml", "--out", tmp_path / "killed")
    # moments are steps, not seconds, so that a machine whose speed changes is hit as often; the last fifth of the run
    # is left out: the kill is sent some steps after the one that was waited for
    moments = sorted(random.Random(seed).sample(range(n_steps * 4 // 5), n_kills))
    hits = [killed_after(tmp_path / "killed" / "metrics.jsonl", moment, *arguments) for moment in moments]
    assert all(hits), f"{hits.count(False)} of the kills before steps {moments} came after the end"
    code, errors = finish(start(*arguments))
    assert code == 0, errors
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.dist
def test_a_run_killed_at_random_moments_and_restarted_gives_the_same_curve_digit_for_digit(tmp_path, tiny_recipe):
    assert_survives(tmp_path, tiny_recipe, n_kills=2, seed=random.randrange(10**6), n_steps=600)


@pytest.mark.slow
@pytest.mark.dist
def test_a_run_killed_at_twenty_random_moments_gives_the_same_curve_digit_for_digit(tmp_path, tiny_recipe):
    assert_survives(tmp_path, tiny_recipe, n_kills=20, seed=random.randrange(10**6), n_steps=6000)


@pytest.mark.dist
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_control_c_and_sigterm_save_exit_with_130_and_the_run_goes_on_from_there(tmp_path, tiny_recipe, sent):
    recipe = long_recipe(tiny_recipe, tmp_path / "recipe.toml", n_steps=500, every_steps=0)
    arguments = ("train", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    process = start(*arguments)
    assert wait_until(lambda: size(tmp_path / "run" / "metrics.jsonl") > 0, process)
    process.send_signal(sent)
    code, errors = finish(process)
    assert code == 130 and "stopped; everything done so far is saved" in errors and "Traceback" not in errors
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    assert 0 < int(saved.name.removeprefix("step_")) < 500
    run_pretrain(recipe, tmp_path / "run")
    run_pretrain(recipe, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_run_on_a_disk_that_fills_up_stops_with_one_error_and_resumes_when_there_is_room(
    small_disk, tmp_path, tiny_recipe
):
    recipe = tiny_recipe(checkpoint={"every_steps": 5})
    run_dir, ballast = small_disk / "run", small_disk / "ballast"
    run_pretrain(recipe, run_dir, should_stop=stopping_after(8))
    free = os.statvfs(small_disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_bsize - 40_000))  # room for the metrics, not for a checkpoint
    with pytest.raises(CheckpointError, match="disk is full; earlier checkpoints are intact: free some space"):
        run_pretrain(recipe, run_dir)
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step_00000005", "step_00000009"]
    ballast.unlink()
    run_pretrain(recipe, run_dir)
    run_pretrain(recipe, tmp_path / "whole")
    assert_same_run(run_dir, tmp_path / "whole")


def test_documents_masked_from_each_other_make_another_run_with_its_own_loss(tmp_path, tiny_recipe, tiny_tokens):
    # windows so long that a fifth of them holds the start of a document
    longer = {"model": {"seq_len": 128}, "train": {"batch_tokens": 512, "n_tokens": 30 * 512}}
    open_, masked = tiny_recipe(**longer), tiny_recipe(**longer, data={"cross_document": False})
    token_set = TokenSet.open(tiny_tokens)
    assert trajectory_of(open_, token_set) != trajectory_of(masked, token_set)
    results = [run_pretrain(recipe, tmp_path / str(index)) for index, recipe in enumerate((open_, masked))]
    assert results[0]["loss_nats"] != results[1]["loss_nats"] and results[1]["status"] == "finished"
    stopped = run_pretrain(masked, tmp_path / "parts", should_stop=stopping_after(9))
    assert stopped["status"] == "interrupted"
    run_pretrain(masked, tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "1")


def test_a_run_that_has_cooled_down_is_not_made_longer(tiny_recipe, tmp_path):
    short, longer = tiny_recipe(), tiny_recipe(train={"n_tokens": 60 * 64})
    run_pretrain(short, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"at step 30 of a run of 30 steps, this recipe has 60; .* \(step 24\)"):
        run_pretrain(longer, tmp_path / "run")
    cooler = tiny_recipe(train={"cooldown_fraction": 0.5})
    run_pretrain(short, tmp_path / "half", should_stop=_after(20))
    with pytest.raises(CheckpointError, match=r"up to the cooldown of the shorter one \(step 15\)"):
        run_pretrain(cooler, tmp_path / "half")
    run_pretrain(short, tmp_path / "trunk", should_stop=_after(20))  # before its cooldown, it may go on
    assert run_pretrain(longer, tmp_path / "trunk")["step"] == 60
    assert _losses(tmp_path / "trunk") == _losses_of_a_new_run(longer, tmp_path / "new")


def _after(n_steps):
    calls = iter(range(10_000))
    return lambda: next(calls) >= n_steps


def _losses(run):
    return [json.loads(line)["loss_nats"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _losses_of_a_new_run(recipe, folder):
    run_pretrain(recipe, folder)
    return _losses(folder)


def test_a_rule_that_names_no_layer_shows_before_a_device_is_touched(tiny_recipe):
    rules = {"rules": [{"modules": "block.*", "format": "fp8_block"}]}
    with pytest.raises(RecipeError, match=r"'block.\*' matches none of the \d+ layers; did you mean 'blocks.\*'\?"):
        check_layers(tiny_recipe(numerics=rules))
    check_layers(tiny_recipe(numerics={"rules": [{"modules": "blocks.*", "format": "fp8_block"}]}))


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ({"low": 1.0, "bits_per_byte": 0.5, "high": 2.0}, r"low, bits_per_byte, high = \[1.0, 0.5, 2.0\] must rise"),
        ({"bits_per_byte": "a"}, r"prediction.bits_per_byte = 'a' must be a finite number; plan again"),
        ({"target_flops": "a"}, r"prediction.target_flops = 'a' must be a finite number; plan again"),
        ({"curve": {"steps": 3, "of_final": [1.0], "gain_nats": 1.0}}, r"prediction.curve must hold steps, of_final"),
        ({"high": math.nan}, r"prediction.high = nan must be a finite number"),
    ],
)
def test_a_prediction_that_cannot_be_scored_is_refused_before_the_run(tiny_recipe, prediction, message):
    with pytest.raises(RecipeError, match=message):
        check(tiny_recipe(prediction=prediction))


def test_a_device_that_is_not_there_is_named_with_its_option():
    for name, message in (
        ("mps", "no Apple GPU"),
        ("cuda:99", "no GPU here|GPU.s., from cuda:0"),
        ("tpu", "not a device"),
    ):
        with pytest.raises(RecipeError, match=f"--device = '{name}' .*({message})"):
            choose_device(name, key="--device")


def test_a_recipe_of_a_run_whose_data_is_no_section_is_named(tmp_path, tiny_tree):
    (tmp_path / "recipe.toml").write_text(to_toml({"data": 3, "model": tiny_tree["model"]}), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"recipe\.toml: data = 3 must be a section with keys"):
        read_sizes(tmp_path / "recipe.toml")
