"""What a decoding step of a few tokens does beside its products (products.py): choices, pages, experts.

Such a step is bound by reading weights once, and by the start of each kernel. So experts take what stands before them
(residual, norm) and behind them (gate, weight of an expert) into the same kernel, and every operand is read once. Where
kernels may begin `early`, each starts while the one before it runs. Arithmetic is float32 between loads
and stores.

Shapes: N tokens (at most 16), D in, F out, H query heads, G key/value heads, C channels of a head, L channels of a
latent, E experts, A active experts, W tokens of a row.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from isoflop.numerics.kernels.products import _wait


@triton.jit
def best_of_blocks(logits, best, ids, n, n_blocks, block: tl.constexpr, early: tl.constexpr):
    """Largest logit of each `block` of a row [N, n], and the first place that has it, [N, blocks]."""
    _wait(early)
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = part * block + tl.arange(0, block)
    x = tl.load(logits + row * n + place, place < n, float("-inf")).to(tl.float32)
    x = tl.where(x != x, float("inf"), x)  # what is no number must show
    tl.store(best + row * n_blocks + part, tl.max(x, 0))
    tl.store(ids + row * n_blocks + part, part * block + tl.argmax(x, 0))


@triton.jit
def best_of_row(best, ids, out, n_blocks, blocks: tl.constexpr, early: tl.constexpr):
    """out [N, 2], float64: the first place of the largest logit, and that logit."""
    _wait(early)
    row, part = tl.program_id(0), tl.arange(0, blocks)
    x = tl.load(best + row * n_blocks + part, part < n_blocks, float("-inf"))
    place = tl.load(ids + row * n_blocks + tl.argmax(x, 0))
    tl.store(out + 2 * row, place.to(tl.float64))
    tl.store(out + 2 * row + 1, tl.max(x, 0).to(tl.float64))


@triton.jit
def turn_and_write(
    qkv, cos, sin, slots, q_out, keys, values, n_heads, n_groups, half, channels: tl.constexpr, early: tl.constexpr
):  # fmt: skip
    """One head of one token: queries turned to q_out [N, H, C], keys turned and values to their slots of the pages."""
    _wait(early)
    token, head = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, channels)
    inside, width = channel < half, 2 * half
    source = qkv + (token.to(tl.int64) * (n_heads + 2 * n_groups) + head) * width + channel
    first, second = tl.load(source, inside, 0.0).to(tl.float32), tl.load(source + half, inside, 0.0).to(tl.float32)
    slot = tl.load(slots + token)
    if head < n_heads + n_groups:
        c = tl.load(cos + token * half + channel, inside, 1.0)
        s = tl.load(sin + token * half + channel, inside, 0.0)
        turned = first * c - second * s
        second = second * c + first * s
        first = turned
    if head < n_heads:
        target = q_out + (token.to(tl.int64) * n_heads + head) * width
    elif head < n_heads + n_groups:
        target = keys + (slot * n_groups + head - n_heads) * width
    else:
        target = values + (slot * n_groups + head - n_heads - n_groups) * width
    tl.store(target + channel, first.to(qkv.dtype.element_ty), inside)
    tl.store(target + half + channel, second.to(qkv.dtype.element_ty), inside)


@triton.jit
def absorb_and_write(
    x, gain, up, cos, sin, slots, q_out, keys, n_heads, d_nope, d_value, d_latent, half, eps,
    heads: tl.constexpr, nopes: tl.constexpr, latents: tl.constexpr, channels: tl.constexpr, block: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """Latent attention between its first product and its pages. x [N, H (nope + rope) + latent + rope].

    Programs after the first make the queries of one head against `block` channels of the latent, q_nope times that
    head's rows of `up` [H (nope + value), L]; the first turns the rotary parts and writes latent and key to the pages.
    q_out [N, H, L + rope].
    """
    _wait(early)
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d_query, d_key = d_nope + 2 * half, d_latent + 2 * half
    x += token * (n_heads * d_query + d_key)
    if part > 0:
        n_blocks = tl.cdiv(d_latent, block)
        mine, wide = (part - 1) // n_blocks, (part - 1) % n_blocks * block + tl.arange(0, block)
        nope = tl.arange(0, nopes)
        q = tl.load(x + mine * d_query + nope, nope < d_nope, 0.0).to(tl.float32)
        rows = up + (mine * (d_nope + d_value) + nope)[:, None] * d_latent + wide[None, :]
        w = tl.load(rows, (nope < d_nope)[:, None] & (wide < d_latent)[None, :], 0.0).to(tl.float32)
        y = tl.sum(q[:, None] * w, 0)
        tl.store(q_out + (token * n_heads + mine) * d_key + wide, y.to(q_out.dtype.element_ty), wide < d_latent)
    else:
        channel, lane, head = tl.arange(0, channels), tl.arange(0, latents), tl.arange(0, heads)
        inside = channel < half
        c = tl.load(cos + token * half + channel, inside, 1.0)
        s = tl.load(sin + token * half + channel, inside, 0.0)
        slot = keys + tl.load(slots + token) * d_key
        source = x + n_heads * d_query
        latent = tl.load(source + lane, lane < d_latent, 0.0).to(tl.float32)
        latent *= tl.rsqrt(tl.sum(latent * latent) / d_latent + eps) * tl.load(gain + lane, lane < d_latent, 0.0)
        tl.store(slot + lane, latent.to(keys.dtype.element_ty), lane < d_latent)
        first = tl.load(source + d_latent + channel, inside, 0.0).to(tl.float32)
        second = tl.load(source + d_latent + half + channel, inside, 0.0).to(tl.float32)
        tl.store(slot + d_latent + channel, (first * c - second * s).to(keys.dtype.element_ty), inside)
        tl.store(slot + d_latent + half + channel, (second * c + first * s).to(keys.dtype.element_ty), inside)
        of_heads = (head < n_heads)[:, None] & inside[None, :]
        ropes = x + head[:, None] * d_query + d_nope + channel[None, :]
        q_first = tl.load(ropes, of_heads, 0.0).to(tl.float32)
        q_second = tl.load(ropes + half, of_heads, 0.0).to(tl.float32)
        target = q_out + (token * n_heads + head[:, None]) * d_key + d_latent + channel[None, :]
        tl.store(target, (q_first * c - q_second * s).to(q_out.dtype.element_ty), of_heads)
        tl.store(target + half, (q_second * c + q_first * s).to(q_out.dtype.element_ty), of_heads)


@triton.jit
def attend_pages(
    q, keys, values, table, before, out, parts, stats, n_heads, n_groups, n_columns, n_splits, d_key, d_value, scale,
    width: tl.constexpr, sharing: tl.constexpr, queries: tl.constexpr, channels: tl.constexpr, ropes: tl.constexpr,
    page: tl.constexpr, split_pages: tl.constexpr, block: tl.constexpr, is_split: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """Attention of rows of W queries to their pages, for one group of heads and `split_pages` pages of keys.

    `sharing` heads use one key head; they and the W queries of a row stand together, so that a key is read once. With
    `ropes` the values are the first d_value channels of the keys [latent, rotary key]. Results go to `out` [N, H, V],
    or unfinished, with their maximum (base 2) and sum, to parts [N, H, splits, V] and stats [N, H, splits, 2].
    A split is so many pages whatever the batch and the longest row: a row's sums do not depend on others.
    """
    _wait(early)
    row, split = tl.program_id(0), tl.program_id(2)
    n_blocks = tl.cdiv(sharing * width, queries)
    group, j = tl.program_id(1) // n_blocks, tl.program_id(1) % n_blocks * queries + tl.arange(0, queries)
    step = j // sharing
    head, token = group * sharing + j % sharing, row * width + step
    real = j < sharing * width
    held = tl.load(before + row)
    last = tl.maximum(held + step, 0)  # the last key that a query sees; one in front of its sequence sees one too
    n_keys = tl.minimum(tl.maximum(held + width, 1), n_columns * page)
    begin, end = split * split_pages * page, tl.minimum((split + 1) * split_pages * page, n_keys)
    if begin < end:
        c, r, s = tl.arange(0, channels), tl.arange(0, ropes if ropes else 1), tl.arange(0, block)
        at = q + (token.to(tl.int64) * n_heads + head)[:, None] * d_key
        q_first = tl.load(at + c[None, :], real[:, None] & (c < d_value)[None, :], 0.0)
        if ropes:
            q_rope = tl.load(at + d_value + r[None, :], real[:, None] & (d_value + r < d_key)[None, :], 0.0)
        top = tl.full([queries], float("-inf"), tl.float32)
        sums = tl.zeros([queries], tl.float32)
        mixed = tl.zeros([queries, channels], tl.float32)
        for start in range(begin, end, block):
            key = start + s
            number = tl.load(table + row * n_columns + start // page)
            slot = ((number * page + start % page + s) * n_groups + group)[:, None]
            there = (key < end)[:, None]
            k_first = tl.load(keys + slot * d_key + c[None, :], there & (c < d_value)[None, :], 0.0)
            scores = tl.dot(q_first, tl.trans(k_first), input_precision="ieee")
            if ropes:
                k_rope = tl.load(
                    keys + slot * d_key + d_value + r[None, :], there & (d_value + r < d_key)[None, :], 0.0
                )
                scores = tl.dot(q_rope, tl.trans(k_rope), scores, input_precision="ieee")
                v = k_first
            else:
                v = tl.load(values + slot * d_value + c[None, :], there & (c < d_value)[None, :], 0.0)
            seen = (key[None, :] <= last[:, None]) & (key < end)[None, :]
            scores = tl.where(seen, scores * scale, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            level = tl.where(higher == float("-inf"), 0.0, higher)  # all keys of a query lie behind it
            p = tl.exp2(scores - level[:, None])
            shrink = tl.exp2(top - level)
            sums = sums * shrink + tl.sum(p, 1)
            mixed = tl.dot(p.to(v.dtype), v, mixed * shrink[:, None], input_precision="ieee")
            top = higher
        index = token.to(tl.int64) * n_heads + head
        keep = real[:, None] & (c < d_value)[None, :]
        if is_split:
            index = index * n_splits + split
            tl.store(parts + index[:, None] * d_value + c[None, :], mixed, keep)
            tl.store(stats + 2 * index, top, real)
            tl.store(stats + 2 * index + 1, sums, real)
        else:
            mixed /= sums[:, None]
            tl.store(out + index[:, None] * d_value + c[None, :], mixed.to(out.dtype.element_ty), keep)


@triton.jit
def merge_splits(
    parts, stats, before, out, n_heads, n_columns, n_splits, d_value,
    width: tl.constexpr, page: tl.constexpr, split_pages: tl.constexpr, splits: tl.constexpr, block: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """out [N, H, V] of one token and head, `block` channels, from the splits that its row has."""
    _wait(early)
    token, head = tl.program_id(0), tl.program_id(1)
    c, split = tl.program_id(2) * block + tl.arange(0, block), tl.arange(0, splits)
    n_keys = tl.minimum(tl.maximum(tl.load(before + token // width) + width, 1), n_columns * page)
    live = split * split_pages * page < n_keys
    index = token.to(tl.int64) * n_heads + head
    place = index * n_splits + split
    top = tl.load(stats + 2 * place, live, float("-inf"))
    weight = tl.exp2(top - tl.max(top))
    sums = tl.sum(weight * tl.load(stats + 2 * place + 1, live, 0.0))
    tile = tl.load(parts + place[:, None] * d_value + c[None, :], live[:, None] & (c < d_value)[None, :], 0.0)
    y = tl.sum(tile * weight[:, None], 0) / sums
    tl.store(out + index * d_value + c, y.to(out.dtype.element_ty), c < d_value)


@triton.jit
def values_up(
    mixed, up, out, n_heads, d_nope, d_value, d_latent, tile: tl.constexpr, latents: tl.constexpr, early: tl.constexpr
):  # fmt: skip
    """out [N, H, value]: mixed latents [N, H, L] times each head's last rows of `up` [H (nope + value), L]."""
    _wait(early)
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    v, lane = tl.program_id(2) * tile + tl.arange(0, tile), tl.arange(0, latents)
    rows = up + (head * (d_nope + d_value) + d_nope + v)[:, None] * d_latent + lane[None, :]
    w = tl.load(rows, (v < d_value)[:, None] & (lane < d_latent)[None, :], 0.0).to(tl.float32)
    x = tl.load(mixed + (token * n_heads + head) * d_latent + lane, lane < d_latent, 0.0).to(tl.float32)
    y = tl.sum(w * x[None, :], 1)
    tl.store(out + (token * n_heads + head) * d_value + v, y.to(out.dtype.element_ty), v < d_value)


@triton.jit
def experts_up(
    x, gain, scores, bias, gate_up, shared, inner, chosen, n_experts, n_inner, n_shared, routed_scale, eps,
    n_in: tl.constexpr, n_active: tl.constexpr, biased: tl.constexpr, sigmoid: tl.constexpr, sharing: tl.constexpr,
    normalise: tl.constexpr, experts: tl.constexpr, tile: tl.constexpr, depth: tl.constexpr, stages: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """inner [N, A F + shared F]: weighted SwiGLUs of norm(x) in the experts that `scores` [N, E] choose.

    Each program chooses by itself, from E numbers; the first of an expert notes it in chosen [N, A].
    """
    _wait(early)
    token, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * tile
    e = tl.arange(0, experts)
    score = tl.load(scores + token * n_experts + e, e < n_experts, float("-inf"))
    if sigmoid:
        affinity = tl.sigmoid(score)
    else:
        affinity = tl.exp(score - tl.max(score))
        affinity /= tl.sum(affinity)
    score = affinity
    if biased:
        score += tl.load(bias + e, e < n_experts, 0.0)
    score = tl.where(e < n_experts, score, float("-inf"))
    mine, share, together = 0, 0.0, 1e-20
    slot = first // n_inner
    for a in tl.static_range(n_active):
        best = tl.minimum(tl.argmax(score, 0), n_experts - 1)
        its = tl.sum(tl.where(e == best, affinity, 0.0))
        together += its
        mine = tl.where(slot == a, best, mine)
        share = tl.where(slot == a, its, share)
        score = tl.where(e == best, float("-inf"), score)
    if normalise:
        share /= together
    n_routed, width = n_active * n_inner, n_active * n_inner + n_shared
    f, end = first % n_inner + tl.arange(0, tile), n_inner
    base, share = gate_up + mine.to(tl.int64) * 2 * n_inner * n_in, share * routed_scale  # pyright: ignore[reportAttributeAccessIssue]
    tl.store(chosen + token * n_active + slot, mine, (first < n_routed) & (first % n_inner == 0))
    if sharing and first >= n_routed:
        f, end, base, share = first - n_routed + tl.arange(0, tile), n_shared, shared, 1.0
    lane = tl.arange(0, depth)
    sums, ups, squares = (
        tl.zeros([tile, depth], tl.float32),
        tl.zeros([tile, depth], tl.float32),
        tl.zeros([depth], tl.float32),
    )
    for start in tl.range(0, n_in, depth, num_stages=stages):
        k = start + lane
        inside = (f < end)[:, None] & (k < n_in)[None, :]
        w = tl.load(base + f[:, None] * n_in + k[None, :], inside, 0.0).to(tl.float32)
        w_up = tl.load(base + (end + f)[:, None] * n_in + k[None, :], inside, 0.0).to(tl.float32)
        h = tl.load(x + token * n_in + k, k < n_in, 0.0).to(tl.float32)
        squares += h * h
        h *= tl.load(gain + k, k < n_in, 0.0)
        sums += w * h[None, :]
        ups += w_up * h[None, :]
    scale = tl.rsqrt(tl.sum(squares) / n_in + eps)
    gate, up = tl.sum(sums, 1) * scale, tl.sum(ups, 1) * scale
    y = gate * tl.sigmoid(gate) * up * share
    tl.store(inner + token * width + first + tl.arange(0, tile), y.to(inner.dtype.element_ty), f < end)


@triton.jit
def experts_down(
    inner, chosen, down, shared, plus, out, n_out, n_inner: tl.constexpr, n_shared: tl.constexpr,
    n_active: tl.constexpr, tile: tl.constexpr, depth: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """out [N, D]: the chosen experts' and the shared ones' last products of `inner`, added up and to `plus`."""
    _wait(early)
    token, d = tl.program_id(0).to(tl.int64), tl.program_id(1) * tile + tl.arange(0, tile)
    lane, inside = tl.arange(0, depth), (d < n_out)[:, None]
    source = inner + token * (n_active * n_inner + n_shared)
    sums = tl.zeros([tile, depth], tl.float32)
    for a in tl.static_range(n_active):
        base = down + tl.load(chosen + token * n_active + a).to(tl.int64) * n_out * n_inner
        for start in range(0, n_inner, depth):
            k = start + lane
            w = tl.load(base + d[:, None] * n_inner + k[None, :], inside & (k < n_inner)[None, :], 0.0)
            h = tl.load(source + a * n_inner + k, k < n_inner, 0.0).to(tl.float32)
            sums += w.to(tl.float32) * h[None, :]
    if n_shared > 0:
        for start in range(0, n_shared, depth):
            k = start + lane
            w = tl.load(shared + d[:, None] * n_shared + k[None, :], inside & (k < n_shared)[None, :], 0.0)
            h = tl.load(source + n_active * n_inner + k, k < n_shared, 0.0).to(tl.float32)
            sums += w.to(tl.float32) * h[None, :]
    y, at = tl.sum(sums, 1).to(out.dtype.element_ty), token * n_out + d
    y = y.to(tl.float32) + tl.load(plus + at, d < n_out, 0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), d < n_out)


@triton.jit
def gumbel(keys, out, n, stream, first: tl.constexpr, second: tl.constexpr, block: tl.constexpr):
    """out [R, n]: Gumbel noise by Philox 4x64-10 of keys [R, 2], seed and position; `block` counters a program.

    `first` and `second` are the generator's multipliers. As serving/noise.py, which numpy computes.
    """
    row, counter = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    a = (counter + 1).to(tl.uint64)
    b = tl.load(keys + 2 * row + 1).to(tl.uint64, bitcast=True) + tl.zeros_like(a)
    c, d = tl.zeros_like(a), tl.zeros_like(a)
    key, other = tl.load(keys + 2 * row).to(tl.uint64, bitcast=True), stream.to(tl.uint64)
    for _ in tl.static_range(10):
        high_a, low_a = tl.umulhi(a, tl.full([block], first, tl.uint64)), a * tl.full([block], first, tl.uint64)
        high_c, low_c = tl.umulhi(c, tl.full([block], second, tl.uint64)), c * tl.full([block], second, tl.uint64)
        a, b, c, d = high_c ^ b ^ key, low_c, high_a ^ d ^ other, low_a
        key += tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
        other += tl.full([], 0xBB67AE8584CAA73B, tl.uint64)
    at = out + row * n
    _store_gumbel(at, a, 8 * counter, n)
    _store_gumbel(at, b, 8 * counter + 2, n)
    _store_gumbel(at, c, 8 * counter + 4, n)
    _store_gumbel(at, d, 8 * counter + 6, n)


@triton.jit
def _store_gumbel(out, word, place, n):
    """Both halves of 64 bits, the low one first, as -log(-log(1 - u)) at `place` and behind it."""
    for half in tl.static_range(2):
        bits = ((word >> (32 * half)) & 0xFFFFFFFF).to(tl.uint32)
        u = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994039535522)
        rest = 1.0 - u  # log(1 - u) without losing what rounding took of u (Kahan): small u wins
        exact = tl.where(rest == 1.0, u, -tl.log(rest) * (u / tl.where(rest == 1.0, 1.0, 1.0 - rest)))
        tl.store(out + place + half, -tl.log(exact), place + half < n)
