"""Bytes that a training step with adapters needs: `model.accounting.training_memory` with a frozen base.

What is frozen has weights and their casts, but no gradient, no moments and no gradient of the head. Everything the
backward pass of the base keeps is kept still, since adapters read the same inputs; beside it each adapted layer keeps
its narrow product, and both of its matrices once more in the format of the activations.
"""

import dataclasses

import torch

from isoflop.alignment.adapters import adapted_layers, add_adapters
from isoflop.alignment.recipe import AdapterSection
from isoflop.model.accounting import BYTES, Memory, count_parameters, training_memory
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer


def adapter_memory(
    config: ModelConfig, section: AdapterSection, *, precision: str = "bf16", micro_tokens: int
) -> Memory:
    """Of one device; `micro_tokens` are all tokens of a micro-batch, padding included."""
    micro_batch = -(-micro_tokens // config.seq_len)
    whole = training_memory(config, precision=precision, micro_batch=micro_batch)
    with torch.device("meta"):
        model = Transformer(config, torch.bfloat16)
    add_adapters(model, section, torch.Generator())
    layers = adapted_layers(model)
    n_adapter = sum(layer.lora_a.numel() + layer.lora_b.numel() for layer in layers.values())
    width, tokens = BYTES[precision], micro_batch * config.seq_len
    parts = dataclasses.asdict(whole)
    del parts["total_bytes"]
    parts["weights_bytes"] += 4 * n_adapter
    parts["compute_weights_bytes"] += width * n_adapter if width < 4 else 0
    parts["gradients_bytes"], parts["optimizer_bytes"] = 4 * n_adapter, 8 * n_adapter
    parts["activations_bytes"] += width * tokens * section.rank * len(layers)
    parts["logits_bytes"] -= 4 * count_parameters(config).n_params_head * (1 + config.mtp_depth)
    return Memory(**parts, total_bytes=sum(parts.values()))
