"""Models of seconds for the engine's tests, and what it means that a text is the model's own."""

import dataclasses

import torch
from test_deepseek import SIGMOID, V2, build

from isoflop.interop.parity import TOLERANCE, _routing_ties
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer

DENSE = ModelConfig(2, 32, 4, 2, 8, 48, 160, 400, init_std=0.12)
MOE_MLA = dataclasses.replace(V2, n_layers=2, seq_len=400, experts=SIGMOID, mtp_depth=2, init_std=0.12)
MODELS = {"dense": DENSE, "moe_mla": MOE_MLA}


def prompts_of(n, config, *, shortest=1, longest=150, seed=3):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (n,), generator=generator).tolist()
    return [torch.randint(0, config.vocab_size, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def count_ties(model: Transformer, completions) -> int:
    """Requests whose greedy text leaves that of the full forward pass where a tie allows it; fails for any other one.

    A text is the full forward's if each of its tokens is the most likely one after those before it: one pass decides.
    Ties are the parity report's: two logits within twice the tolerance, or a routing tie at or before the place. The
    float64 model then says whether both tokens are right.
    """
    device = model.embedding.weight.device
    exact = Transformer(model.config, torch.float64).double().to(device)
    exact.load_state_dict(model.state_dict())
    n_ties = 0
    for request, done in enumerate(completions):
        tokens, start = [*done.prompt_ids, *done.ids], len(done.prompt_ids)
        with _routing_ties(model) as ties:
            logits_TV = model.logits(torch.tensor([tokens[:-1]], device=device))[0]
        chosen = logits_TV[start - 1 :].argmax(-1).tolist()
        differs = [at for at, (a, b) in enumerate(zip(chosen, done.ids, strict=True)) if a != b]
        if not differs:
            continue
        place = start - 1 + differs[0]
        ours, theirs = done.ids[differs[0]], chosen[differs[0]]
        gap = (logits_TV[place, theirs] - logits_TV[place, ours]).item()
        allowed = 2 * TOLERANCE * logits_TV.abs().max().item()
        routed = any(bool(tied_T[: place + 1].any()) for tied_T in ties)
        assert gap <= allowed or routed, f"request {request}, token {differs[0]}: {ours} for {theirs}, gap {gap}"
        wide_V = exact.logits(torch.tensor([tokens[: place + 1]], device=device))[0, -1]
        true_gap = (wide_V.max() - wide_V[[ours, theirs]]).max().item()
        assert true_gap <= allowed or routed, f"request {request}: neither {ours} nor {theirs} is right, {true_gap}"
        n_ties += 1
    return n_ties


def fresh(name, seed=0):
    return build(MODELS[name], seed=seed)


def foresighted(seed=0):
    """MOE_MLA with prediction modules that are often right: the next token hangs mostly on the one before it."""
    model = build(MOE_MLA, seed=seed)
    d = MOE_MLA.d_model
    with torch.no_grad():
        for block in model.all_blocks():
            block.attention.out.weight.mul_(0.05)
            for name, weight in block.mlp.named_parameters():
                if "down" in name:
                    weight.mul_(0.05)
        for module in model.mtp:  # the embedding passes through, the hidden state hardly
            module.project.weight.mul_(0.1)
            module.project.weight[:, :d] += torch.eye(d)
            module.norm.weight.copy_(model.norm.weight)
            module.embedding_norm.weight.fill_(1.0)
    return model


def one_module(name):
    """Of latent experts, whose module is often right, or dense, where it hardly ever is."""
    if name == "dense":
        model = Transformer(ModelConfig(2, 32, 4, 2, 8, 48, 160, 400, init_std=0.12, mtp_depth=1), torch.float32)
        model.initialise(torch.Generator().manual_seed(0))
        return model
    deep = foresighted()
    model = Transformer(dataclasses.replace(MOE_MLA, mtp_depth=1), torch.float32)
    model.load_state_dict({key: value for key, value in deep.state_dict().items() if not key.startswith("mtp.1.")})
    return model
