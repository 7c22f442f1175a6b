"""Another system on the same shape, for train_step.py --peer: Llama of transformers, trained as its users would.

float32 weights under bf16 autocast, cuDNN attention, every layer compiled, fused AdamW, clipping, and a step of the
same number of tokens with gradients really added up. The loss is cross-entropy over the logits of one micro-batch,
compiled, in chunks where the vocabulary is large.
"""

import time

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.model.attention import fastest_kernels
from isoflop.model.config import ModelConfig

CHUNK = 4096


def transformers_tokens_per_s(shape: ModelConfig, micro_batch: int, sequences: int, repeats: int = 2) -> float:
    """Tokens per second of whole optimizer steps; the better of `repeats`, after two micro-batches of warm-up."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.compiler.reset()
    from torch.utils.checkpoint import checkpoint

    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=shape.seq_len,
        use_cache=False,
    )
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).float()
    model.train()
    for layer in model.model.layers:
        layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(shape.vocab_size, (sequences, shape.seq_len + 1), device="cuda")
    loss_of = torch.compile(_loss)

    def step(windows: Tensor) -> None:
        for part in windows.split(micro_batch):
            with torch.autocast("cuda", torch.bfloat16):
                hidden = model.model(part[:, :-1]).last_hidden_state.flatten(0, 1)
                pairs = zip(hidden.split(CHUNK), part[:, 1:].flatten().split(CHUNK), strict=True)
                losses = [checkpoint(loss_of, h, model.lm_head.weight, t, use_reentrant=False) for h, t in pairs]
            (torch.stack(losses).sum() / windows[:, 1:].numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    best = 0.0
    with fastest_kernels(torch.device("cuda")):
        step(tokens[: 2 * micro_batch])
        for _ in range(repeats):
            torch.cuda.synchronize()
            began = time.perf_counter()
            step(tokens)
            torch.cuda.synchronize()
            best = max(best, sequences * shape.seq_len / (time.perf_counter() - began))
    return best


def _loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
