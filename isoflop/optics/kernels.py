"""Triton kernels of the fused product: each reads its operand once and writes its result once.

Import only where there is a CUDA device: Triton comes with torch for CUDA, not with torch for CPUs. The reference is
the plain PyTorch of modulator.py, converters.py and receiver.py; `fused.py` says for which cores the kernels stand in.

Shapes: M windows, K symbols, N neurons; a program of `encode_*` works on one row, one of `read` on part of one.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from triton.language.extra import libdevice  # pyright: ignore[reportMissingImports]


@triton.jit
def encode_inputs(
    x, light, stats, n, contrast, reach, limit, top, linear: tl.constexpr, whole: tl.constexpr, block: tl.constexpr
):
    """Signed light of one window in the units of x; stats [M, 3]: digital scale, sum of light, sum of its square.

    `whole`: a block holds the row, so that it is read once.
    """
    row = tl.program_id(0).to(tl.int64)
    x, light, lane = x + row * n, light + row * n, tl.arange(0, block)
    value, largest = _loaded(x, lane, n), tl.zeros([block], tl.float32)
    for start in range(block, n, block):
        largest = tl.maximum(largest, tl.abs(_loaded(x, start + lane, n)))
    largest = tl.max(tl.maximum(largest, tl.abs(value)))
    scale = tl.where(largest > 7.888609052210118e-31, largest, 1.0) / reach  # tensor_core.ALMOST_NOTHING
    sent = _input_light(value, 1.0 / scale, contrast, limit, top, linear)
    tl.store(light + lane, tl.where(value < 0.0, -sent, sent) * scale, lane < n)
    total, squares = sent, sent * sent
    if not whole:
        for start in range(block, n, block):
            value = _loaded(x, start + lane, n)
            sent = _input_light(value, 1.0 / scale, contrast, limit, top, linear)
            tl.store(light + start + lane, tl.where(value < 0.0, -sent, sent) * scale, start + lane < n)
            total += sent
            squares += sent * sent
    tl.store(stats + 3 * row, scale)
    tl.store(stats + 3 * row + 1, tl.sum(total))
    tl.store(stats + 3 * row + 2, tl.sum(squares))


@triton.jit
def _input_light(value, gain, contrast, limit, top, linear: tl.constexpr):
    """What the first modulator lets through for |value|; where nothing is sent, no weight is either (signs.py)."""
    u = tl.abs(value) * gain
    if linear:
        sent = _clamp(libdevice.rint(u * top), 0.0, top) * (1.0 / top)
    else:
        step = 2.0 * limit / top
        phase = libdevice.asin(_clamp(u * (2.0 / contrast) - 1.0 / contrast, -1.0, 1.0))
        code = _clamp(libdevice.rint(phase * (1.0 / step) + limit / step), 0.0, top)
        sent = libdevice.fast_sinf(code * step - limit) * (0.5 * contrast) + 0.5
    return tl.where(value == 0.0, 0.0, tl.where(u == u, sent, u))  # clamping must not hide a NaN


@triton.jit
def encode_weights(
    w, light, stats, n, n_rows, contrast, reach, limit, top, leak,
    linear: tl.constexpr, leaks: tl.constexpr, whole: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Light of one neuron in the units of w, leak included; stats [3, N]: digital scale, its inverse, mean square."""
    row = tl.program_id(0).to(tl.int64)
    w, light, lane = w + row * n, light + row * n, tl.arange(0, block)
    value, largest = _grown(w, lane, n, leak, leaks), tl.zeros([block], tl.float32)
    for start in range(block, n, block):
        largest = tl.maximum(largest, tl.abs(_grown(w, start + lane, n, leak, leaks)))
    largest = tl.max(tl.maximum(largest, tl.abs(value)))
    scale = tl.where(largest > 7.888609052210118e-31, largest, 1.0) / reach  # tensor_core.ALMOST_NOTHING
    sent = _weight_light(value, lane, n, 1.0 / scale, contrast, limit, top, leak, linear, leaks)
    tl.store(light + lane, sent * scale, lane < n)
    squares = sent * sent
    if not whole:
        for start in range(block, n, block):
            value = _grown(w, start + lane, n, leak, leaks)
            sent = _weight_light(value, start + lane, n, 1.0 / scale, contrast, limit, top, leak, linear, leaks)
            tl.store(light + start + lane, sent * scale, start + lane < n)
            squares += sent * sent
    tl.store(stats + row, scale)
    tl.store(stats + n_rows + row, 1.0 / scale)
    tl.store(stats + 2 * n_rows + row, tl.sum(squares) / n)


@triton.jit
def _grown(w, k, n, leak, leaks: tl.constexpr):
    """Weights as they must be sent for the leak to cancel."""
    value = _loaded(w, k, n)
    return value * tl.exp((n - 1 - k) * leak) if leaks else value


@triton.jit
def _weight_light(value, k, n, gain, contrast, limit, top, leak, linear: tl.constexpr, leaks: tl.constexpr):
    """What the second modulator makes of a weight, as it is left when the window ends."""
    v = value * gain
    if linear:
        sent = _clamp(libdevice.rint(v * top), -top, top) * (1.0 / top)
    else:
        phase = libdevice.asin(_clamp(v * (1.0 / contrast), -1.0, 1.0))
        code = _clamp(libdevice.rint(phase * (top / limit)), -top, top)
        sent = libdevice.fast_sinf(code * (limit / top)) * contrast
    sent = tl.where(v == v, sent, v)
    return sent * tl.exp((k + 1 - n) * leak) if leaks else sent


@triton.jit
def sample(charge, inputs, weights, sums, n, stride, constant, shot, relative, gain2, block: tl.constexpr):
    """Sums over every `stride`-th window, for full scale; sums [windows, 3]: charge, its square, its noise variance."""
    row = tl.program_id(0).to(tl.int64) * stride
    scale, light, light2 = tl.load(inputs + 3 * row), tl.load(inputs + 3 * row + 1), tl.load(inputs + 3 * row + 2)
    first, second, noise = tl.zeros([block], tl.float32), tl.zeros([block], tl.float32), tl.zeros([block], tl.float32)
    for start in range(0, n, block):
        k = start + tl.arange(0, block)
        read = tl.load(charge + row * n + k, k < n, 0.0).to(tl.float32)
        read = read * ((1.0 / scale) * tl.load(weights + n + k, k < n, 0.0))
        weight2 = tl.load(weights + 2 * n + k, k < n, 0.0)
        variance = constant + shot * light + relative * light2 * weight2 + gain2 * read * read
        first += read
        second += read * read
        noise += tl.where(k < n, variance, 0.0)
    tl.store(sums + 3 * tl.program_id(0), tl.sum(first))
    tl.store(sums + 3 * tl.program_id(0) + 1, tl.sum(second))
    tl.store(sums + 3 * tl.program_id(0) + 2, tl.sum(noise))


@triton.jit(do_not_specialize=["part_number"])
def read(
    charge, inputs, weights, sums, y, clipped, n_clipped, m, n, n_sampled,
    deviations, fixed, low, high, half, constant, shot, relative, gain2, reset, key, layer, part_number,
    noisy: tl.constexpr, samples: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Noise, ADC and scales of `block` results of `rows` windows; noise depends on keys, row and column alone."""
    full_scale = _full_scale(sums, n, n_sampled, deviations, fixed, low, high, noisy, samples)
    quarter: tl.constexpr = block // 4
    lane = tl.arange(0, quarter)
    drawn, first = tl.program_id(1) * quarter + lane, tl.program_id(1) * block
    seed = _seed(key, layer, part_number)
    beyond = tl.zeros([quarter], tl.int32)
    for row in range(tl.program_id(0) * rows, min(m, tl.program_id(0) * rows + rows)):
        start, stats = tl.cast(row, tl.int64) * n + first, inputs + 3 * row
        scale, light, light2 = tl.load(stats), tl.load(stats + 1), tl.load(stats + 2)
        if noisy:
            a, b, c, d = tl.philox(seed, drawn, drawn * 0 + row, drawn * 0, drawn * 0)
            z0, z1 = _normal_pair(a, b)
            z2, z3 = _normal_pair(c, d)
        for part in tl.static_range(4):
            lane_n = part * quarter + lane
            k = first + lane_n
            inside = k < n
            value = _loaded(charge + start, lane_n, n - first)
            value = value * ((1.0 / scale) * tl.load(weights + n + k, inside, 0.0))
            if noisy:
                weight2 = tl.load(weights + 2 * n + k, inside, 0.0)
                variance = constant + reset * full_scale + shot * light + relative * light2 * weight2
                variance += gain2 * value * value
                value += (z0 if part == 0 else z1 if part == 1 else z2 if part == 2 else z3) * tl.sqrt(variance)
            code = value * (half / full_scale)
            over = (tl.abs(code) > half) & inside
            held = _clamp(libdevice.rint(code), 0.5 - half, half - 0.5)
            held = tl.where(code == code, held, code)  # clamping must not hide a NaN
            held = held * (full_scale / half * scale) * tl.load(weights + k, inside, 0.0)
            tl.store(y + start + lane_n, held, inside)
            tl.store(clipped + start + lane_n, over, inside)
            beyond += over.to(tl.int32)
    count = tl.sum(beyond)
    if count > 0:
        tl.atomic_add(n_clipped, count.to(tl.int64))


@triton.jit
def stop_clipped(d_y, clipped, out, n, block: tl.constexpr):
    """Gradients of results, 0 where the receiver clipped them; all flat."""
    k = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    value, over = tl.load(d_y + k, k < n), tl.load(clipped + k, k < n)
    tl.store(out + k, tl.where(over, 0.0, value), k < n)


@triton.jit
def _loaded(row, k, n):
    return tl.load(row + k, k < n, 0.0).to(tl.float32)


@triton.jit
def _full_scale(sums, n, n_sampled, deviations, fixed, low, high, noisy: tl.constexpr, samples: tl.constexpr):
    lane = tl.arange(0, samples)
    count = 1.0 * n * n_sampled
    mean = tl.sum(tl.load(sums + 3 * lane, lane < n_sampled, 0.0)) / count
    variance = tl.sum(tl.load(sums + 3 * lane + 1, lane < n_sampled, 0.0)) / count - mean * mean
    if noisy:
        variance += tl.sum(tl.load(sums + 3 * lane + 2, lane < n_sampled, 0.0)) / count
    found = tl.abs(mean) + deviations * tl.sqrt(tl.maximum(variance, 0.0))
    return _clamp(tl.where(fixed > 0.0, fixed, found), low, high)


@triton.jit
def _seed(key, layer, part_number):
    """64 bits of the five numbers of a key, the layer and the part, by two rounds of the generator itself."""
    step, batch, rank, call = tl.load(key + 1), tl.load(key + 2), tl.load(key + 3), tl.load(key + 4)
    a, b, _, _ = tl.philox(tl.load(key), _low(step), _low(batch), _low(batch >> 32), _low(rank))
    a, b, _, _ = tl.philox(_joined(a, b), _low(call), _low(tl.load(layer)), _low(part_number), 0)
    return _joined(a, b)


@triton.jit
def _low(number):
    return tl.cast(number, tl.int32)


@triton.jit
def _joined(a, b):
    return tl.cast(a, tl.uint64) << 32 | tl.cast(b, tl.uint64)


@triton.jit
def _normal_pair(a, b):
    """Two standard normals of two random words (Box and Muller); the angle stays where the fast sine is exact."""
    u, v = tl.uint_to_uniform_float(a), tl.uint_to_uniform_float(b)
    radius = tl.sqrt(tl.maximum(-2.0 * libdevice.fast_logf(tl.maximum(u, 1e-7)), 0.0))
    angle = 6.283185307179586 * v - 3.141592653589793
    return radius * libdevice.fast_cosf(angle), radius * libdevice.fast_sinf(angle)


@triton.jit
def _clamp(value, low, high):
    return tl.minimum(tl.maximum(value, low), high)
