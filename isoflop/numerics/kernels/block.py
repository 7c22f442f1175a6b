"""Elementwise steps of a block, each reading its operands once and writing its results once.

Shapes: R rows (tokens), D columns of a norm, F columns of a gate, T tokens of a sequence, C channels of a head.
Arithmetic is float32 between bf16 loads and stores.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def swiglu(gate_up, weights, out, n, weighted: tl.constexpr, block: tl.constexpr):
    """out [R, F] = silu(gate) * up, times weights [R] where `weighted`; gate_up [R, 2 F]."""
    row, lane = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    inside = lane < n
    gate = tl.load(gate_up + row * 2 * n + lane, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * n + n + lane, inside, 0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    if weighted:
        value *= tl.load(weights + row)
    tl.store(out + row * n + lane, value.to(out.dtype.element_ty), inside)


@triton.jit
def swiglu_backward(
    d_out, gate_up, weights, d_gate_up, d_weights, n, weighted: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    """d_gate_up [R, 2 F] from d_out [R, F]; with weights also d_weights [R], for which one program takes a row."""
    row = tl.program_id(0).to(tl.int64)
    weight, total = 1.0, tl.zeros([block], tl.float32)
    if weighted:
        weight = tl.load(weights + row)
        first, last = 0, n
    else:
        first = tl.program_id(1) * block
        last = tl.minimum(first + block, n)
    for start in range(first, last, block):
        lane = start + tl.arange(0, block)
        inside = lane < n
        gate = tl.load(gate_up + row * 2 * n + lane, inside, 0.0).to(tl.float32)
        up = tl.load(gate_up + row * 2 * n + n + lane, inside, 0.0).to(tl.float32)
        d = tl.load(d_out + row * n + lane, inside, 0.0).to(tl.float32)
        share = tl.sigmoid(gate)
        open_gate = gate * share
        if weighted:
            total += d * open_gate * up
            d *= weight
        d_gate = d * up * (share + open_gate * (1.0 - share))
        tl.store(d_gate_up + row * 2 * n + lane, d_gate.to(d_gate_up.dtype.element_ty), inside)
        tl.store(d_gate_up + row * 2 * n + n + lane, (d * open_gate).to(d_gate_up.dtype.element_ty), inside)
    if weighted:
        tl.store(d_weights + row, tl.sum(total))


@triton.jit
def _turn(
    source, target, cos, sin, source_head, target_head, first_head, n_heads, half, sign,
    heads: tl.constexpr, channels: tl.constexpr,
):  # fmt: skip
    """Turn channel i with channel i + half of `n_heads` heads of one token; the target counts from `first_head`."""
    head, channel = tl.arange(0, heads)[:, None], tl.arange(0, channels)[None, :]
    inside = (head < n_heads) & (channel < half)
    c = tl.load(cos + channel, channel < half, 1.0)
    s = tl.load(sin + channel, channel < half, 0.0) * sign
    first = tl.load(source + head * source_head + channel, inside, 0.0).to(tl.float32)
    second = tl.load(source + head * source_head + half + channel, inside, 0.0).to(tl.float32)
    at = target + (first_head + head) * target_head + channel
    tl.store(at, (first * c - second * s).to(target.dtype.element_ty), inside)
    tl.store(at + half, (second * c + first * s).to(target.dtype.element_ty), inside)


@triton.jit
def turn_heads(
    x, cos, sin, out, n_tokens, n_heads, n_all, half, heads: tl.constexpr, channels: tl.constexpr
):  # fmt: skip
    """out [B, T, H, C]: the first H of the n_all heads of x [B, T, n_all, C], turned by their position's angles."""
    token = tl.program_id(0).to(tl.int64)
    place = token % n_tokens
    _turn(
        x + token * n_all * 2 * half, out + token * n_heads * 2 * half, cos + place * half, sin + place * half,
        2 * half, 2 * half, 0, n_heads, half, 1.0, heads, channels,
    )  # fmt: skip


@triton.jit
def turn_back(
    d_q, d_k, d_v, cos, sin, d_x, n_tokens, n_q, n_kv, half,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    q_heads: tl.constexpr, kv_heads: tl.constexpr, channels: tl.constexpr,
):  # fmt: skip
    """d_x [B, T, n_q + 2 n_kv, C] from gradients [B, H, T, C] of any strides: queries and keys turned back, values as
    they are."""
    token = tl.program_id(0).to(tl.int64)
    batch, place = token // n_tokens, token % n_tokens
    c, s, target = cos + place * half, sin + place * half, d_x + token * (n_q + 2 * n_kv) * 2 * half
    _turn(d_q + batch * q_b + place * q_t, target, c, s, q_h, 2 * half, 0, n_q, half, -1.0, q_heads, channels)
    _turn(d_k + batch * k_b + place * k_t, target, c, s, k_h, 2 * half, n_q, n_kv, half, -1.0, kv_heads, channels)
    head, channel = tl.arange(0, kv_heads)[:, None], tl.arange(0, 2 * channels)[None, :]
    inside = (head < n_kv) & (channel < 2 * half)
    value = tl.load(d_v + batch * v_b + place * v_t + head * v_h + channel, inside, 0.0)
    tl.store(target + (n_q + n_kv + head) * 2 * half + channel, value, inside)


@triton.jit
def rms_norm(x, update, weight, total, out, scale, n, eps, joined: tl.constexpr, block: tl.constexpr):
    """out = t / rms(t) * weight with t = x, or x + update where `joined` (stored as `total`); scale [R] = 1 / rms."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    inside = lane < n
    value = tl.load(x + row * n + lane, inside, 0.0).to(tl.float32)
    if joined:
        value += tl.load(update + row * n + lane, inside, 0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + row * n + lane, rounded, inside)
        value = rounded.to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(value * value) / n + eps)
    tl.store(scale + row, factor)
    w = tl.load(weight + lane, inside, 0.0).to(tl.float32)
    tl.store(out + row * n + lane, (value * factor * w).to(out.dtype.element_ty), inside)


@triton.jit
def rms_norm_backward(
    d_out, d_total, x, weight, scale, d_x, d_weight, n_rows, n, joined: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    """d_x [R, D], with the residual's gradient `d_total` added where `joined`; d_weight [programs, D]: sums of rows."""
    lane = tl.arange(0, block)
    inside = lane < n
    w = tl.load(weight + lane, inside, 0.0).to(tl.float32)
    sums = tl.zeros([block], tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), n_rows, tl.num_programs(0)):
        at = row * n + lane
        factor = tl.load(scale + row)
        unit = tl.load(x + at, inside, 0.0).to(tl.float32) * factor
        d = tl.load(d_out + at, inside, 0.0).to(tl.float32)
        sums += d * unit
        d *= w
        found = factor * (d - unit * (tl.sum(d * unit) / n))
        if joined:
            found += tl.load(d_total + at, inside, 0.0).to(tl.float32)
        tl.store(d_x + at, found.to(d_x.dtype.element_ty), inside)
    tl.store(d_weight + tl.program_id(0) * n + lane, sums, inside)


@triton.jit
def cross_entropy(logits, targets, losses, n, block: tl.constexpr):
    """losses [R] = log sum exp - logit of the target, and logits [R, V] overwritten by their gradient.

    A target below 0 counts nothing. The row is read twice, the second time from the cache.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * n
    target = tl.load(targets + row)
    largest, total = tl.full([block], float("-inf"), tl.float32), tl.zeros([block], tl.float32)
    for start in range(0, n, block):
        lane = start + tl.arange(0, block)
        value = tl.load(logits + lane, lane < n, float("-inf")).to(tl.float32)
        higher = tl.maximum(largest, value)
        seen = (higher > float("-inf")) | (value != value)  # a NaN is, and stays
        total = tl.where(seen, total * tl.exp(largest - higher) + tl.exp(value - higher), 0.0)
        largest = higher
    top = tl.max(largest)
    log_z = top + tl.log(tl.sum(tl.where(total > 0.0, total * tl.exp(largest - top), total)))
    counted = target >= 0
    found = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(counted, log_z - found, 0.0))
    tl.debug_barrier()  # the target's logit is read before its place is overwritten
    for start in range(0, n, block):
        lane = start + tl.arange(0, block)
        value = tl.load(logits + lane, lane < n, 0.0).to(tl.float32)
        gradient = tl.exp(value - log_z) - tl.where(lane == target, 1.0, 0.0)
        tl.store(logits + lane, tl.where(counted, gradient, 0.0).to(logits.dtype.element_ty), lane < n)
