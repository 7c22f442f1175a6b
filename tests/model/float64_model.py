"""The model written a second time, plainly: float64, one token and one expert at a time, no code of the package.

In: weights by name and a config. Out: logits and losses through autograd, a reference for values and gradients.
Formulas are those of arXiv 2412.19437, sections 2.1 and 2.2, and of arXiv 2309.00071 for YaRN.
"""

import math

import torch
from torch.nn import functional as F


def norm(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def swiglu(x, gate_up, down):
    gate, up = (x @ gate_up.T).chunk(2, -1)
    return (gate * gate.sigmoid() * up) @ down.T


def frequencies(config, width):
    """Angle per position of every rotary pair."""
    found = []
    for pair in range(width // 2):
        theta = config.rope_base ** (-2 * pair / width)
        if config.yarn is not None:
            y = config.yarn
            low, high = (
                width * math.log(y.original_seq_len / (2 * math.pi * turns)) / (2 * math.log(config.rope_base))
                for turns in (y.beta_fast, y.beta_slow)
            )
            low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
            ramp = min(max((pair - low) / (high - low), 0.0), 1.0)
            theta = theta * (1 - ramp) + theta / y.factor * ramp
        found.append(theta)
    return torch.tensor(found, dtype=torch.float64)


def turn(x_BHTC, config):
    """Channels i and i + C/2 as one complex number, turned by position."""
    half = x_BHTC.shape[-1] // 2
    position = torch.arange(x_BHTC.shape[2], dtype=torch.float64)
    angle = torch.outer(position, frequencies(config, 2 * half))
    pairs = torch.complex(x_BHTC[..., :half], x_BHTC[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((pairs.real, pairs.imag), -1)


def mix(q, k, v, config):
    n = q.shape[2]
    m = 1.0 if config.yarn is None else 0.1 * config.yarn.mscale * math.log(config.yarn.factor) + 1
    scores = q @ k.transpose(2, 3) / math.sqrt(config.d_head) * m**2
    scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
    mixed = scores.softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2)


def heads_of(x, n):
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def attention(x, of, config):
    h, g, c = config.n_heads, config.n_kv_heads, config.d_head
    if config.latent is None:
        q, k, v = heads_of(x @ of["qkv.weight"].T, h + 2 * g).split([h, g, g], 1)
        k, v = turn(k, config).repeat_interleave(h // g, 1), v.repeat_interleave(h // g, 1)
        return mix(turn(q, config), k, v, config) @ of["out.weight"].T
    z = config.latent
    if z.d_q_latent:
        q = norm(x @ of["q_down.weight"].T, of["q_norm.weight"], config.norm_eps) @ of["q_up.weight"].T
    else:
        q = x @ of["q.weight"].T
    q = heads_of(q, h)
    q = torch.cat((q[..., : z.d_nope], turn(q[..., z.d_nope :], config)), -1)
    down = x @ of["kv_down.weight"].T
    latent = norm(down[..., : z.d_kv_latent], of["kv_norm.weight"], config.norm_eps)
    k_rope = turn(down[:, None, :, z.d_kv_latent :], config)
    kv = heads_of(latent @ of["kv_up.weight"].T, h)
    k = torch.cat((kv[..., : z.d_nope], k_rope.repeat(1, h, 1, 1)), -1)
    assert k.shape[-1] == c
    return mix(q, k, kv[..., z.d_nope :], config) @ of["out.weight"].T


def choose(scores, config):
    """Indices of the chosen experts of one token, from selection scores (a list of floats)."""
    e = config.experts
    size = e.n_experts // e.n_groups
    groups = [range(i * size, (i + 1) * size) for i in range(e.n_groups)]
    n_best = e.n_active // e.n_groups_kept if e.group_score == "top_sum" else 1

    def worth(group):
        return sum(sorted((scores[i] for i in group), reverse=True)[:n_best])

    allowed = [i for group in sorted(groups, key=worth, reverse=True)[: e.n_groups_kept] for i in group]
    return sorted(allowed, key=lambda i: scores[i], reverse=True)[: e.n_active]


def experts(x, of, config):
    e = config.experts
    flat, rows = x.flatten(0, 1), []
    for token in flat:
        logits = of["router.weight"] @ token
        affinity = logits.sigmoid() if e.affinity == "sigmoid" else logits.softmax(-1)
        score = affinity + of["router.bias"] if e.selection_bias else affinity
        chosen = choose(score.tolist(), config)
        total = sum(affinity[i] for i in chosen) if e.normalise else 1.0
        row = torch.zeros_like(token)
        for i in chosen:
            weight = affinity[i] / total * e.routed_scale
            row = row + weight * swiglu(token, of["experts.gate_up"][i], of["experts.down"][i])
        if e.n_shared:
            row = row + swiglu(token, of["shared.gate_up.weight"], of["shared.down.weight"])
        rows.append(row)
    return torch.stack(rows).view_as(x)


def below(weights, prefix):
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def block(x, of, config):
    x = x + attention(norm(x, of["attention_norm.weight"], config.norm_eps), below(of, "attention."), config)
    y = norm(x, of["mlp_norm.weight"], config.norm_eps)
    mlp = below(of, "mlp.")
    return x + (experts(y, mlp, config) if "router.weight" in mlp else swiglu(y, *mlp.values()))


def hidden(weights, config, tokens_BT):
    x = weights["embedding.weight"][tokens_BT]
    for layer in range(config.n_layers):
        x = block(x, below(weights, f"blocks.{layer}."), config)
    return norm(x, weights["norm.weight"], config.norm_eps)


def losses(weights, config, tokens_BT, targets_BT):
    """Sums of the next-token loss and of every prediction module's."""

    def nats(h, targets):
        logits = h @ weights["head.weight"].T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    h = hidden(weights, config, tokens_BT)
    found = [nats(h, targets_BT)]
    for k in range(1, config.mtp_depth + 1):
        of = below(weights, f"mtp.{k - 1}.")
        embedded = norm(weights["embedding.weight"][tokens_BT[:, k:]], of["embedding_norm.weight"], config.norm_eps)
        joined = torch.cat((embedded, norm(h[:, :-1], of["hidden_norm.weight"], config.norm_eps)), -1)
        h = norm(
            block(joined @ of["project.weight"].T, below(of, "block."), config), of["norm.weight"], config.norm_eps
        )
        found.append(nats(h, targets_BT[:, k:]))
    return found
