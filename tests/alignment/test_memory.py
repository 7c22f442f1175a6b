"""What a step with adapters needs: the base's weights and activations, but no gradient and no moments of it."""

import torch

from isoflop.alignment.adapters import adapted_layers, add_adapters
from isoflop.alignment.memory import adapter_memory
from isoflop.alignment.recipe import AdapterSection
from isoflop.model.accounting import training_memory
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer

CONFIG = ModelConfig(2, 32, 4, 2, 8, 48, 160, 64, init_std=0.12)


def test_only_adapters_have_gradients_and_moments():
    section = AdapterSection(rank=4)
    model = Transformer(CONFIG, torch.float32)
    add_adapters(model, section, torch.Generator().manual_seed(0))
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    n_all = sum(p.numel() for p in model.parameters())
    found = adapter_memory(CONFIG, section, precision="bf16", micro_tokens=100)
    assert (found.weights_bytes, found.gradients_bytes, found.optimizer_bytes) == (
        4 * n_all,
        4 * n_trained,
        8 * n_trained,
    )
    whole = training_memory(CONFIG, precision="bf16", micro_batch=2)
    assert found.activations_bytes - whole.activations_bytes == 2 * 128 * 4 * len(adapted_layers(model))
    assert found.total_bytes < whole.total_bytes


def test_a_frozen_head_gets_no_gradient_and_the_stream_the_same_one():
    torch.manual_seed(0)
    tokens_BT = torch.randint(0, CONFIG.vocab_size, (2, 9))
    found = []
    for frozen in (False, True):
        model = Transformer(CONFIG, torch.float32)
        model.initialise(torch.Generator().manual_seed(0))
        model.head.requires_grad_(not frozen)
        model.loss_sum(tokens_BT[:, :-1], tokens_BT[:, 1:]).backward()
        assert (model.head.weight.grad is None) == frozen
        found.append(model.embedding.weight.grad)
    assert torch.equal(*found)
