"""Muon against torch.optim.Muon, matrix by matrix; what it moves, what it leaves to AdamW, and that runs resume."""

import dataclasses

import pytest
import torch

from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.recipe import from_tree, to_tree
from isoflop.training.muon import muon, orthogonalise
from isoflop.training.optim import adamw
from isoflop.training.pretrain.recipe import PretrainRecipe

DENSE = ModelConfig(2, 32, 4, 2, 8, 48, 64, 16, init_std=0.1)
EXPERTS = ExpertConfig(4, 2, 16)
MIXTURE = dataclasses.replace(DENSE, n_kv_heads=4, d_head=12, latent=LatentConfig(16, 8, 4, 8), experts=EXPERTS)
SETTINGS = {"learning_rate": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def build(config):
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def with_gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def matrices_of(name, tensor, config):
    """The matrices that a parameter joins, written down a second time."""
    if name.endswith("attention.qkv.weight"):
        queries, others = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        return list(tensor.split([queries, others, others]))
    halves = tensor.chunk(2, -2) if "gate_up" in name else [tensor]
    return [matrix for half in halves for matrix in (half.unbind(0) if half.ndim == 3 else [half])]


@pytest.mark.parametrize("config", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_every_matrix_of_a_block_takes_the_steps_of_torch_optim_muon(config):
    model, reference = build(config), build(config)
    ours = muon(model, **SETTINGS)
    named = {
        name: p
        for name, p in reference.named_parameters()
        if name.startswith("blocks.") and p.ndim > 1 and "router" not in name
    }
    copies = {
        name: [torch.nn.Parameter(matrix.detach().clone()) for matrix in matrices_of(name, p, config)]
        for name, p in named.items()
    }
    flat = [matrix for matrices in copies.values() for matrix in matrices]
    theirs = torch.optim.Muon(flat, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    rest = {name: p for name, p in reference.named_parameters() if name not in named}
    expected_rest = adamw(reference, **SETTINGS)
    for step in range(4):
        for optimizer in (ours, theirs, expected_rest):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (step + 1)
        with_gradients(model, step)
        with_gradients(reference, step)
        for name, p in named.items():
            for matrix, gradient in zip(copies[name], matrices_of(name, p.grad, config), strict=True):
                matrix.grad = gradient.clone()
            p.grad = None
        ours.step()
        theirs.step()
        expected_rest.step()
    for name, p in model.named_parameters():
        if name in rest:
            assert torch.equal(p, rest[name]), name
        else:
            for found, expected in zip(matrices_of(name, p, config), copies[name], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_orthogonalised_matrices_have_singular_values_near_one():
    for shape in ((3, 24, 40), (2, 40, 24)):
        matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalise(matrices.bfloat16()).float())
        assert values.min() > 0.6 and values.max() < 1.3


def test_one_rate_and_one_state_serve_both_optimizers():
    model = build(DENSE)
    optimizer = muon(model, **SETTINGS)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with_gradients(model, 0)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    slots = {name: set(optimizer.state[p]) for name, p in model.named_parameters()}
    assert slots["blocks.0.mlp.down.weight"] == {"momentum_buffer"}
    assert slots["embedding.weight"] == slots["head.weight"] == {"step", "exp_avg", "exp_avg_sq"}
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_the_choice_is_part_of_a_recipe_and_no_old_recipe_changes(tiny_tree):
    assert "optimizer" not in to_tree(from_tree(tiny_tree, PretrainRecipe))["train"]
    chosen = {**tiny_tree, "train": {**tiny_tree["train"], "optimizer": "muon"}}
    assert from_tree(chosen, PretrainRecipe).train.optimizer == "muon"


def test_a_run_with_muon_learns_and_resumes_to_the_same_weights(tiny_recipe, tmp_path):
    from isoflop.training.pretrain.workload import run_pretrain

    recipe = tiny_recipe(train={"optimizer": "muon"})
    whole = run_pretrain(recipe, tmp_path / "whole")
    run_pretrain(recipe, tmp_path / "halves", stop_at=recipe.n_steps() // 2)
    resumed = run_pretrain(recipe, tmp_path / "halves")
    assert resumed["loss_nats"] == whole["loss_nats"] and whole["status"] == "finished"
    other = run_pretrain(tiny_recipe(), tmp_path / "adamw")
    assert other["trajectory"] != whole["trajectory"]
