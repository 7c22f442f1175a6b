"""Terms of a step: the objective, one bias move per step from the whole batch, schedules, resuming, two ranks."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isoflop.errors import RecipeError
from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.tokens.shards import TokenSet
from isoflop.training import checkpoint
from isoflop.training.balance import balance_loss
from isoflop.training.optim import adamw
from isoflop.training.pretrain.recipe import BalanceSection, MtpSection, check, check_mtp
from isoflop.training.pretrain.terms import StepTerms
from isoflop.training.pretrain.validate import validate
from isoflop.training.pretrain.workload import run_pretrain, trajectory_of
from isoflop.training.step import take_step
from isoflop.training.workload import Loss, Workload

EXPERTS = ExpertConfig(8, 2, 8, n_dense_layers=1)
CONFIG = ModelConfig(3, 16, 2, 2, 8, 24, 64, 12, init_std=0.1, experts=EXPERTS, mtp_depth=2)
MODEL = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "d_head": 6, "mtp_depth": 1}
MODEL |= {"latent": {"d_kv_latent": 4, "d_nope": 4, "d_rope": 2, "d_value": 4}}
MODEL |= {"experts": {"n_experts": 8, "n_active": 2, "d_expert": 8, "n_dense_layers": 1}}


def build(config=CONFIG):
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def windows(n=8, seed=0):
    return torch.randint(0, CONFIG.vocab_size, (n, CONFIG.seq_len + 1), generator=torch.Generator().manual_seed(seed))


class Windows(Workload):
    """The workload of a recipe without a tokens folder."""

    def __init__(self, terms, n=8):
        self.terms, self.hooks, self.tokens_per_step = terms, [terms], n * CONFIG.seq_len

    def loss_sum(self, model, micro_batch):
        losses = model.losses(micro_batch[0][:, :-1], micro_batch[0][:, 1:])
        return Loss(self.terms.objective(losses), losses.nats)


def one_step(n_micro, balance=None, step=0, config=CONFIG):
    model = build(config)
    terms = StepTerms(model, balance or BalanceSection(), MtpSection(), batch_tokens=8 * CONFIG.seq_len)
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    terms.begin(step)
    parts = [(part,) for part in windows().chunk(n_micro)]
    values = take_step(Windows(terms), model, optimizer, parts, clip_norm=1.0)
    optimizer.zero_grad()
    return model, values, terms


def test_the_objective_is_the_next_token_loss_plus_weighted_depths_plus_balance():
    model = build()
    balance = BalanceSection(sequence_loss=0.01, expert_loss=0.02)
    terms = StepTerms(model, balance, MtpSection(weight=0.3), batch_tokens=96)
    terms.begin(0)
    losses = model.losses(windows()[:, :-1], windows()[:, 1:])
    added = sum(balance_loss(routing, EXPERTS, balance) for routing in losses.routings)
    wanted = losses.nats + 0.3 / 2 * sum(losses.mtp_nats) + CONFIG.seq_len * added
    assert len(losses.routings) == 2 + 2 and len(losses.mtp_nats) == 2
    torch.testing.assert_close(terms.objective(losses), wanted)
    assert (added > 0).item()


def test_what_is_reported_is_the_next_token_loss_alone():
    balance = BalanceSection(expert_loss=5.0)
    _, values, _ = one_step(1, balance)
    model = build()
    alone = model.loss_sum(windows()[:, :-1], windows()[:, 1:]) / (8 * CONFIG.seq_len)
    assert values[0].item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("n_micro", [1, 2, 8])
def test_biases_move_once_a_step_by_the_load_of_all_micro_batches(n_micro):
    model, values, _ = one_step(n_micro)
    untouched = build()
    losses = untouched.losses(windows()[:, :-1], windows()[:, 1:])
    for router, routing in zip(model.routers(), losses.routings, strict=True):
        load = routing.load_E.double()
        torch.testing.assert_close(router.bias, 0.001 * torch.sign(load.mean() - load).float())
    violation = [(r.load_E.max() / r.load_E.double().mean() - 1).item() for r in losses.routings]
    assert values[2::3].tolist() == pytest.approx(violation, rel=1e-5)


def test_loads_of_one_step_are_forgotten_by_the_next():
    model, first, terms = one_step(2)
    optimizer = adamw(model, learning_rate=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    second = take_step(Windows(terms), model, optimizer, [(windows(seed=1),)], clip_norm=1.0)
    losses = model.losses(windows(seed=1)[:, :-1], windows(seed=1)[:, 1:])
    violation = [(r.load_E.max() / r.load_E.double().mean() - 1).item() for r in losses.routings]
    assert second[2::3].tolist() != first[2::3].tolist()
    # the biases moved after the loads were counted, so the routing above may differ in a few choices
    assert second[2::3].tolist() == pytest.approx(violation, abs=0.5)
    assert int(terms._loads_LE.sum()) == 0


def test_without_a_selection_bias_loads_are_still_reported():
    config = dataclasses.replace(CONFIG, experts=dataclasses.replace(EXPERTS, selection_bias=False))
    model, values, terms = one_step(1, config=config)
    assert not [name for name in model.state_dict() if "bias" in name]
    found = terms.figures(10, values[2:].tolist())["expert_load"]
    assert [len(found[name]) for name in ("max_violation", "entropy", "dead")] == [4, 4, 4]
    assert terms.figures(11, values[2:].tolist()) == {}


def test_biases_bring_a_lopsided_router_into_balance():
    model = build(dataclasses.replace(CONFIG, mtp_depth=0))
    with torch.no_grad():
        for router in model.routers():
            router.weight[0] += 0.4
            router.weight[1] -= 0.4
    terms = StepTerms(model, BalanceSection(bias_speed=0.01), MtpSection(), batch_tokens=96)
    violations = []
    for step in range(60):
        terms.begin(step)
        with torch.no_grad():
            losses = model.losses(windows(64, step)[:, :-1], windows(64, step)[:, 1:])
            terms.objective(losses)
        violations.append(terms.finish()[::3].mean().item())
    assert sum(violations[:5]) / 5 > 3 * sum(violations[-5:]) / 5
    assert sum(violations[-5:]) / 5 < 0.4


def test_speed_and_weight_follow_their_token_schedules():
    model = build()
    balance = BalanceSection(bias_speed=0.002, bias_until_tokens=300)
    terms = StepTerms(model, balance, MtpSection(0.4, 0.2, later_from_tokens=200), batch_tokens=100)
    found = []
    for step in range(4):
        terms.begin(step)
        found.append((round(terms._speed.item(), 6), round(terms._weight.item(), 6)))
    assert found == [(0.002, 0.4), (0.002, 0.4), (0.002, 0.2), (0.0, 0.2)]
    terms.begin(0)
    assert terms._weight.item() == pytest.approx(0.4)


def test_a_later_weight_without_a_start_never_comes():
    terms = StepTerms(build(), BalanceSection(), MtpSection(), batch_tokens=10**15)
    terms.begin(10)
    assert (terms._speed.item(), terms._weight.item()) == pytest.approx((0.001, 0.3))


RANK = """
import sys, torch
from safetensors.torch import save_file
from isoflop.model.transformer import Transformer
from isoflop.training.pretrain.recipe import BalanceSection
from isoflop.training.pretrain.terms import StepTerms
from isoflop.training.pretrain.recipe import MtpSection
sys.path.insert(0, {folder!r})
from test_terms import CONFIG, build, windows
rank, world = int(sys.argv[1]), int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:{port}", rank=rank, world_size=world)
model = build()
terms = StepTerms(model, BalanceSection(), MtpSection(), batch_tokens=96)
terms.begin(0)
mine = windows().chunk(world)[rank]
terms.objective(model.losses(mine[:, :-1], mine[:, 1:]))
statistics = terms.finish()
biases = torch.stack([router.bias for router in model.routers()])
save_file({{"biases": biases, "statistics": statistics}}, sys.argv[3])
torch.distributed.destroy_process_group()
"""


@pytest.mark.dist
def test_two_ranks_move_the_biases_by_the_load_of_both(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = RANK.format(folder=str(Path(__file__).parent), port=port)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    files = [tmp_path / f"{rank}.safetensors" for rank in range(2)]
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), "2", str(file)], env=environment)
        for rank, file in enumerate(files)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    model, values, _ = one_step(1)
    for file in files:
        found = load_file(file)
        assert torch.equal(found["biases"], torch.stack([router.bias for router in model.routers()]))
        torch.testing.assert_close(found["statistics"], values[2:])


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_with_experts_reports_load_keeps_biases_and_resumes_bitwise(tiny_recipe, tmp_path):
    recipe = tiny_recipe(model=MODEL, train={"balance": {"report_every": 5, "bias_speed": 0.01}})
    whole = run_pretrain(recipe, tmp_path / "whole")
    calls = iter(range(1000))
    first = run_pretrain(recipe, tmp_path / "parts", should_stop=lambda: next(calls) == 12)
    assert (first["status"], first["step"]) == ("interrupted", 13)
    second = run_pretrain(recipe, tmp_path / "parts")
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert whole["bits_per_byte"] == second["bits_per_byte"]
    assert whole["max_violation_global"] == second["max_violation_global"]
    weights = [checkpoint.newest(tmp_path / name / "checkpoints") / "model.safetensors" for name in ("whole", "parts")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    rows = rows_of(tmp_path / "whole")
    assert [row["step"] for row in rows if "expert_load" in row] == [5, 10, 15, 20, 25, 30]
    load = rows[4]["expert_load"]
    assert {name: len(values) for name, values in load.items()} == {"max_violation": 2, "entropy": 2, "dead": 2}
    assert all(0 <= entropy <= 1 for entropy in load["entropy"])
    assert len(whole["expert_load"]["max_violation"]) == 1  # the prediction module is not validated


def test_a_restored_model_holds_the_biases_of_the_checkpoint(tiny_recipe, tmp_path):
    recipe = tiny_recipe(model=MODEL)
    run_pretrain(recipe, tmp_path)
    model = Transformer(recipe.model)
    checkpoint.load(checkpoint.newest(tmp_path / "checkpoints"), model, None)
    biases = torch.stack([router.bias for router in model.routers()])
    assert biases.abs().max() > 0
    steps = biases / 0.001
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)  # whole moves of the speed


def test_validation_counts_the_load_of_the_main_model_over_all_windows(tiny_recipe):
    recipe = tiny_recipe(model=MODEL)
    model = Transformer(recipe.model)
    model.initialise(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    groups = []
    for n in (4, 3):
        tokens_BT = torch.randint(0, 512, (n, 17), generator=generator)
        counted_BT = torch.rand(n, 16, generator=generator) < 0.8
        groups.append((tokens_BT, counted_BT, 100))
    found = validate(model, {"a": groups[:1], "b": groups[1:]})
    load = torch.zeros(8, dtype=torch.int64)
    for tokens_BT, counted_BT, _ in groups:
        (routing,) = model.losses(tokens_BT[:, :-1], tokens_BT[:, 1:], with_mtp=False).routings
        load += torch.bincount(routing.chosen_BTA[counted_BT].flatten(), minlength=8)
    violation = (load.max() / load.double().mean() - 1).item()
    assert found["max_violation_global"] == pytest.approx(violation, rel=1e-6)
    assert found["expert_load"]["dead"] == [int((load == 0).sum())]


def test_validation_compiles_no_block_of_a_mixture(tiny_recipe):
    model, compiled = Transformer(tiny_recipe(model=MODEL).model), []
    model.initialise(torch.Generator().manual_seed(0))

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    for block in model.all_blocks():
        block.compile(dynamic=False, backend=backend)
    tokens_BT = torch.randint(0, 512, (2, 17), generator=torch.Generator().manual_seed(1))
    validate(model, {"a": [(tokens_BT, torch.ones(2, 16, dtype=torch.bool), 100)]})
    assert not compiled
    with torch.no_grad():
        model.loss_sum(tokens_BT[:, :-1], tokens_BT[:, 1:])
    assert compiled, "the measurement sees compilation"


def test_the_trajectory_knows_the_terms_and_leaves_dense_models_as_they_were(tiny_recipe, tiny_tokens):
    tokens = TokenSet.open(tiny_tokens)
    base = trajectory_of(tiny_recipe(model=MODEL), tokens)
    assert trajectory_of(tiny_recipe(model=MODEL, train={"balance": {}, "mtp": {}}), tokens) == base
    assert trajectory_of(tiny_recipe(model=MODEL, train={"balance": {"report_every": 3}}), tokens) == base
    assert trajectory_of(tiny_recipe(model=MODEL, train={"balance": {"bias_speed": 0.01}}), tokens) != base
    assert trajectory_of(tiny_recipe(model=MODEL, train={"mtp": {"weight": 0.1}}), tokens) != base


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"balance": {}}}, ["train.balance is set", "no experts"]),
        ({"train": {"mtp": {}}}, ["train.mtp is set", "model.mtp_depth = 0"]),
        ({"model": MODEL, "train": {"balance": {"n_devices": 3}}}, ["train.balance.n_devices = 3", "8"]),
        ({"model": MODEL, "train": {"mtp": {"weight": -0.1}}}, ["train.mtp.weight = -0.1"]),
    ],
)
def test_a_recipe_whose_terms_do_not_fit_its_model_is_refused(tiny_recipe, sections, words):
    with pytest.raises(RecipeError) as caught:
        check(tiny_recipe(**sections))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    check_mtp(MtpSection(), 1)


def test_a_model_with_prediction_modules_and_no_experts_has_terms_without_figures():
    config = dataclasses.replace(CONFIG, experts=None, latent=LatentConfig(4, 4, 4, 4))
    model, values, terms = one_step(2, config=config)
    assert len(values) == 2 and terms.figures(10, []) == {}
    assert all(parameter.grad is None for parameter in model.parameters())
