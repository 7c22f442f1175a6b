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
def rms_norm(x, update, weight, total, out, scale, n_rows, n, eps, joined: tl.constexpr, block: tl.constexpr):
    """out = t / rms(t) * weight with t = x, or x + update where `joined` (stored as `total`); scale [R] = 1 / rms.

    Every `n_rows` rows have a row of `weight` [R / n_rows, D] of their own.
    """
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
    w = tl.load(weight + row // n_rows * n + lane, inside, 0.0).to(tl.float32)
    tl.store(out + row * n + lane, (value * factor * w).to(out.dtype.element_ty), inside)


@triton.jit
def rms_norm_backward(
    d_out, d_total, x, weight, scale, d_x, d_weight, n_rows, n,
    joined: tl.constexpr, together: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """d_x [R, D], with the residual's gradient `d_total` added where `joined`; d_weight [parts, programs, D]: sums of
    the rows of a program, which all lie in one part of `n_rows` rows with its own row of `weight` [parts, D].

    Rows are worked on `together`, and the next ones are being read meanwhile."""
    lane, part = tl.arange(0, block)[None, :], tl.program_id(1).to(tl.int64)
    first, end, step = part * n_rows + tl.program_id(0) * together, (part + 1) * n_rows, tl.num_programs(0) * together
    w = tl.load(weight + part * n + lane, lane < n, 0.0).to(tl.float32)
    sums = tl.zeros([together, block], tl.float32)
    value, d, residual, factor = _rows_of(x, d_out, d_total, scale, first, end, n, joined, together, block)
    for start in range(first, end, step):
        following = _rows_of(x, d_out, d_total, scale, start + step, end, n, joined, together, block)
        unit = value.to(tl.float32) * factor
        wide = d.to(tl.float32)
        sums += wide * unit
        wide *= w
        found = factor * (wide - unit * (tl.sum(wide * unit, 1)[:, None] / n))
        if joined:
            found += residual.to(tl.float32)
        row = start + tl.arange(0, together)[:, None]
        tl.store(d_x + row * n + lane, found.to(d_x.dtype.element_ty), (row < end) & (lane < n))
        value, d, residual, factor = following
    at = (part * tl.num_programs(0) + tl.program_id(0)) * n + tl.arange(0, block)
    tl.store(d_weight + at, tl.sum(sums, 0), tl.arange(0, block) < n)


@triton.jit
def _rows_of(
    x, d_out, d_total, scale, first, end, n, joined: tl.constexpr, together: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    """Rows from `first` on of the operands of a norm's gradient, those from `end` on zeros."""
    row, lane = first + tl.arange(0, together)[:, None], tl.arange(0, block)[None, :]
    at, inside = row * n + lane, (row < end) & (lane < n)
    value, d = tl.load(x + at, inside, 0.0), tl.load(d_out + at, inside, 0.0)
    residual = value
    if joined:
        residual = tl.load(d_total + at, inside, 0.0)
    return value, d, residual, tl.load(scale + row, row < end, 0.0)


@triton.jit
def cross_entropy(logits, targets, losses, n: tl.constexpr, deep: tl.constexpr, block: tl.constexpr):
    """losses [R] = log sum exp - logit of the target, and logits [R, V] overwritten by their gradient.

    A target below 0 counts nothing. The row is read twice, the second time from the cache. `deep` blocks are looked at
    together, so that a running sum is rescaled once for them all, and the next ones are being read meanwhile.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * n
    target = tl.load(targets + row)
    counted = target >= 0
    found = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)
    at = tl.arange(0, deep)[:, None] * block + tl.arange(0, block)[None, :]
    largest, total = tl.full([block], float("-inf"), tl.float32), tl.zeros([block], tl.float32)
    value = tl.load(logits + at, at < n, float("-inf"), eviction_policy="evict_last")
    for start in range(0, n, deep * block):
        ahead = start + deep * block + at
        following = tl.load(logits + ahead, ahead < n, float("-inf"), eviction_policy="evict_last")
        higher = tl.maximum(largest, tl.max(value, 0).to(tl.float32))
        floor = tl.where(higher > float("-inf"), higher, 0.0)  # nothing seen yet: exp(-inf - 0) is 0
        total = total * tl.exp(largest - floor) + tl.sum(tl.exp(value.to(tl.float32) - floor[None, :]), 0)
        largest, value = higher, following
    value = tl.load(logits + at, at < n, 0.0, eviction_policy="evict_first")
    top = tl.max(largest)
    log_z = top + tl.log(tl.sum(total * tl.exp(largest - top)))
    tl.store(losses + row, tl.where(counted, log_z - found, 0.0))
    log_z = tl.where(counted, log_z, float("inf"))  # then every gradient is exp(-inf)
    for start in range(0, n, deep * block):
        now, ahead = start + at, start + deep * block + at
        following = tl.load(logits + ahead, ahead < n, 0.0, eviction_policy="evict_first")
        tl.store(logits + now, tl.exp(value.to(tl.float32) - log_z).to(logits.dtype.element_ty), now < n)
        value = following
    tl.debug_barrier()  # the target's place is overwritten once more, after all others
    tl.store(logits + tl.maximum(target, 0), (tl.exp(found - log_z) - 1.0).to(logits.dtype.element_ty), counted)


@triton.jit
def turn_latent_heads(
    q, kv, k_rope, cos, sin, q_out, k_out, n_tokens, n_heads, nope, half, value, rope_t,
    heads: tl.constexpr, nopes: tl.constexpr, channels: tl.constexpr,
):  # fmt: skip
    """Queries and keys [B, T, H, nope + 2 half] of latent attention: the last 2 half channels turned, the key's the
    same for all heads; kv [B, T, H, nope + value], k_rope [B T, 2 half] with `rope_t` between tokens."""
    token = tl.program_id(0).to(tl.int64)
    place, width = token % n_tokens, nope + 2 * half
    c, s = cos + place * half, sin + place * half
    q, q_out, k_out = q + token * n_heads * width, q_out + token * n_heads * width, k_out + token * n_heads * width
    kv += token * n_heads * (nope + value)
    head, channel = tl.arange(0, heads)[:, None], tl.arange(0, nopes)[None, :]
    inside = (head < n_heads) & (channel < nope)
    tl.store(q_out + head * width + channel, tl.load(q + head * width + channel, inside, 0.0), inside)
    tl.store(k_out + head * width + channel, tl.load(kv + head * (nope + value) + channel, inside, 0.0), inside)
    _turn(q + nope, q_out + nope, c, s, width, width, 0, n_heads, half, 1.0, heads, channels)
    _turn(k_rope + token * rope_t, k_out + nope, c, s, 0, width, 0, n_heads, half, 1.0, heads, channels)


@triton.jit
def turn_latent_back(
    d_q, d_k, d_v, cos, sin, d_q_out, d_kv, d_k_rope, n_tokens, n_heads, nope, half, value,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    heads: tl.constexpr, nopes: tl.constexpr, values: tl.constexpr, channels: tl.constexpr,
):  # fmt: skip
    """The gradients of q, kv and k_rope (summed over heads) from those [B, H, T, ...] of queries, keys and values."""
    token = tl.program_id(0).to(tl.int64)
    batch, place, width = token // n_tokens, token % n_tokens, nope + 2 * half
    cos, sin = cos + place * half, sin + place * half
    d_q, d_k, d_v = d_q + batch * q_b + place * q_t, d_k + batch * k_b + place * k_t, d_v + batch * v_b + place * v_t
    d_q_out, d_kv = d_q_out + token * n_heads * width, d_kv + token * n_heads * (nope + value)
    head, channel = tl.arange(0, heads)[:, None], tl.arange(0, nopes)[None, :]
    inside = (head < n_heads) & (channel < nope)
    tl.store(d_q_out + head * width + channel, tl.load(d_q + head * q_h + channel, inside, 0.0), inside)
    tl.store(d_kv + head * (nope + value) + channel, tl.load(d_k + head * k_h + channel, inside, 0.0), inside)
    column = tl.arange(0, values)[None, :]
    within = (head < n_heads) & (column < value)
    tl.store(d_kv + head * (nope + value) + nope + column, tl.load(d_v + head * v_h + column, within, 0.0), within)
    _turn(d_q + nope, d_q_out + nope, cos, sin, q_h, width, 0, n_heads, half, -1.0, heads, channels)
    turned = tl.arange(0, channels)
    at = head * k_h + nope + turned[None, :]
    inside = (head < n_heads) & (turned < half)[None, :]
    first = tl.sum(tl.load(d_k + at, inside, 0.0).to(tl.float32), 0)
    second = tl.sum(tl.load(d_k + at + half, inside, 0.0).to(tl.float32), 0)
    c, s = tl.load(cos + turned, turned < half, 1.0), tl.load(sin + turned, turned < half, 0.0)
    out = d_k_rope + token * 2 * half + turned
    tl.store(out, (first * c + second * s).to(d_k_rope.dtype.element_ty), turned < half)
    tl.store(out + half, (second * c - first * s).to(d_k_rope.dtype.element_ty), turned < half)


@triton.jit
def sum_rows(rows, places, plus, out, n, n_places: tl.constexpr, joined: tl.constexpr, block: tl.constexpr):
    """out [T, D]: for each token the sum of the rows [R, D] at its places [T, n_places], and of plus [T, D]."""
    token, lane = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    total = tl.zeros([block], tl.float32)
    if joined:
        total += tl.load(plus + token * n + lane, lane < n, 0.0).to(tl.float32)
    for index in tl.static_range(n_places):
        place = tl.load(places + token * n_places + index).to(tl.int64)
        total += tl.load(rows + place * n + lane, lane < n, 0.0).to(tl.float32)
    tl.store(out + token * n + lane, total.to(out.dtype.element_ty), lane < n)


@triton.jit
def spread_rows(rows, places, out, n, n_places: tl.constexpr, block: tl.constexpr):
    """out [R, D]: each row of `rows` [T, D] at its places [T, n_places]; read once, written n_places times."""
    token, lane = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    row = tl.load(rows + token * n + lane, lane < n)
    for index in tl.static_range(n_places):
        place = tl.load(places + token * n_places + index).to(tl.int64)
        tl.store(out + place * n + lane, row, lane < n)


@triton.jit
def add_to(total, x, n, block: tl.constexpr):
    """total += x, in float32 of any operand."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    tl.store(total + at, tl.load(total + at, at < n) + tl.load(x + at, at < n).to(tl.float32), at < n)


@triton.jit
def scaled_cross_entropy(logits, targets, losses, factors, n: tl.constexpr, deep: tl.constexpr, block: tl.constexpr):
    """losses [R] = log sum exp - logit of the target; logits [R, V] overwritten by their gradient over factors [R].

    A row is read once: exp(logit - shift) is the softmax but for a factor that is known at its end. The shift is the
    largest logit of the first blocks; if one is larger by e^40, what is written is scaled anew, so nothing overflows. A
    target below 0 counts nothing: its factor is 0.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * n
    target = tl.load(targets + row)
    counted = target >= 0
    found = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)
    at = tl.arange(0, deep)[:, None] * block + tl.arange(0, block)[None, :]
    shift, total = float("-inf"), tl.zeros([block], tl.float32)
    value = tl.load(logits + at, at < n, float("-inf"))
    for start in range(0, n, deep * block):
        ahead = start + deep * block + at
        following = tl.load(logits + ahead, ahead < n, float("-inf"))
        largest = tl.max(tl.max(value, 0).to(tl.float32))
        if largest > shift + 40.0:
            smaller = tl.exp(shift - largest)
            total *= smaller
            for before in range(0, start, deep * block):
                written = tl.load(logits + before + at).to(tl.float32)
                tl.store(logits + before + at, (written * smaller).to(logits.dtype.element_ty))
            shift = largest
        floor = tl.where(shift > float("-inf"), shift, 0.0)  # nothing seen yet: exp(-inf - 0) is 0
        share = tl.exp(value.to(tl.float32) - floor)
        total += tl.sum(share, 0)
        tl.store(logits + start + at, share.to(logits.dtype.element_ty), start + at < n)
        value = following
    z = tl.sum(total)
    tl.store(losses + row, tl.where(counted, shift + tl.log(z) - found, 0.0))
    tl.store(factors + row, tl.where(counted, 1.0 / z, 0.0))
    tl.debug_barrier()  # the target's place is overwritten once more, after all others
    tl.store(logits + tl.maximum(target, 0), (tl.exp(found - shift) - z).to(logits.dtype.element_ty), counted)


@triton.jit
def scale_rows(x, y, factors, by, out_x, out_y, n, block: tl.constexpr):
    """out = x times factors [R] times by [1], for two matrices [R, D] at once."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    at, inside, factor = row * n + lane, lane < n, tl.load(factors + row) * tl.load(by)
    first, second = tl.load(x + at, inside, 0.0).to(tl.float32), tl.load(y + at, inside, 0.0).to(tl.float32)
    tl.store(out_x + at, (first * factor).to(out_x.dtype.element_ty), inside)
    tl.store(out_y + at, (second * factor).to(out_y.dtype.element_ty), inside)


@triton.jit
def sum_parts(parts, out, n_programs, n, together: tl.constexpr, block: tl.constexpr):
    """out [parts, D] = parts [parts, programs, D] summed over programs."""
    part, lane = tl.program_id(1).to(tl.int64), tl.program_id(0) * block + tl.arange(0, block)[None, :]
    total = tl.zeros([together, block], tl.float32)
    for start in range(0, n_programs, together):
        row = start + tl.arange(0, together)[:, None]
        total += tl.load(parts + (part * n_programs + row) * n + lane, (row < n_programs) & (lane < n), 0.0)
    lane = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(out + part * n + lane, tl.sum(total, 0), lane < n)


@triton.jit
def take_rows(out, table, tokens, n, block: tl.constexpr):
    """out [R, D]: a row of the table [V, D] for every token."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    value = tl.load(table + tl.load(tokens + row) * n + lane, lane < n, 0.0)
    tl.store(out + row * n + lane, value.to(out.dtype.element_ty), lane < n)


@triton.jit
def add_rows(total, x, ids, places, n_rows, n, together: tl.constexpr, block: tl.constexpr):
    """total [V, D] += the rows of x [R, D] that `places` [R] names for each of the sorted `ids` [R].

    The program of an id's first place adds all its rows, `together` at a time; the others have nothing to do.
    """
    first, lane = tl.program_id(0), tl.program_id(1) * block + tl.arange(0, block)
    token = tl.load(ids + first)
    if token != tl.load(ids + first - 1, first > 0, -1):
        row, sums = first + tl.arange(0, together), tl.zeros([block], tl.float32)
        own = tl.load(ids + row, row < n_rows, -1) == token
        while tl.max(own.to(tl.int32)) > 0:
            at = x + tl.load(places + row, own, 0)[:, None] * n + lane[None, :]
            sums += tl.sum(tl.load(at, own[:, None] & (lane < n)[None, :], 0.0).to(tl.float32), 0)
            row += together
            own = tl.load(ids + row, row < n_rows, -1) == token
        at = total + token.to(tl.int64) * n + lane
        tl.store(at, tl.load(at, lane < n, 0.0) + sums, lane < n)
