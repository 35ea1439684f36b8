"""Tile rasteriser of 2D Gaussians with any number of feature channels, forward and backward, compiled with numba.

Same rules as gsplat 1.5.3: alpha = min(0.999, opacity * exp(-s)), skipped below 1/255; a pixel stops before its
transmittance would fall to 1e-4; pixel centres at +0.5. The spans drawn per row are solved from alpha = 1/255, so
nothing outside is visited and nothing inside is missed. Eight pixels of a row are one value (`simd`).

Every tile and every Gaussian is summed by one thread in a fixed order: results do not depend on the thread count.
"""

import math

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from backend.raster.simd import LANES, Lanes, absolute, both, filled, load, minimum, ramp, select, store, total
from backend.raster.sorting import TILE_PX

# A row of a tile in memory: its pixels, and room for the last eight lanes of a run that starts inside.
PITCH = TILE_PX + LANES
ALPHA_CEILING = 0.999
TRANSMITTANCE_FLOOR = 1.0e-4
MEDIAN_TRANSMITTANCE = 0.5
# Finished pixels are looked for after this many Gaussians of a tile (a power of two).
COVERAGE_CHECK_EVERY = 32
# Columns of the gradient to a 2D Gaussian: x, y, conic xx, xy, yy, opacity; its features follow.
GEOMETRY = 6

# Everything of fastmath except "no NaN, no infinity": comparisons with NaN must be false.
FAST = {"contract", "reassoc", "arcp", "nsz", "afn"}
_EXP_CENTRE = 0.35
_EXP_FACTOR = math.exp(-_EXP_CENTRE)


def falloff(s):
    """exp(-s) for 0 <= s <= ln 255, in kernels only; finite or infinite, never NaN, for other finite s."""
    raise NotImplementedError("falloff runs inside compiled kernels")


@overload(falloff, jit_options={"fastmath": FAST, "forceinline": True})
def _falloff(s):
    # exp(-s) = (exp(-0.35) exp(0.35 - s/8))^8 with |0.35 - s/8| <= 0.35, Taylor's polynomial: relative error 1e-6 in
    # float32 and 1e-15 in float64, the same on every CPU and free of a vector maths library.
    real, degree = (np.float32, 6) if s == Lanes(types.float32) else (np.float64, 13)
    coefficients = tuple(real(1.0 / math.factorial(k)) for k in range(degree - 1, -1, -1))
    first, factor = real(1.0 / math.factorial(degree)), real(_EXP_FACTOR)

    def polynomial(s):
        r = _EXP_CENTRE - s * 0.125
        p = filled(first)
        for coefficient in coefficients:
            p = coefficient + r * p
        p = p * factor
        p = p * p
        p = p * p
        return p * p

    return polynomial


@njit(fastmath=FAST, error_model="numpy")
def _range(centre, half_length, half, low, high):
    """Pixels whose centres lie within a distance, cut to [low, high). `half` is 0.5, typed."""
    first, end = math.ceil(centre - half_length - half), math.floor(centre + half_length - half) + 1
    return int(min(max(first, low), high)), int(min(max(end, low), high))


@njit(fastmath=FAST, error_model="numpy")
def _span(a, b, c, reach, x, dy, half, low, high):
    """Pixels of one row where a dx^2 + 2 b dx dy + c dy^2 <= reach, cut to [low, high)."""
    b_dy = b * dy
    discriminant = b_dy * b_dy - a * (c * dy * dy - reach)
    if not discriminant > 0:
        return low, low
    return _range(x - b_dy / a, math.sqrt(discriminant) / a, half, low, high)


@njit(fastmath=FAST, error_model="numpy")
def _row_span(narrow, first, end, a, b, c, reach, x, dy, half, low, high):
    """Where the runs of eight begin in a row. A footprint of up to eight columns is one run, without solving for it."""
    if not narrow:
        return _span(a, b, c, reach, x, dy, half, low, high)
    return first, (end if first < high and end > low else first)


@njit(fastmath=FAST, error_model="numpy")
def _shrink_open_rows(state, row_size, row_open, rows):
    """Move the ends of each row's open range past finished pixels; True when the whole tile is finished."""
    finished = True
    for row in range(rows):
        low, high = row_open[row, 0], row_open[row, 1]
        at = row * row_size
        while low < high and state[at + low] <= 0:
            low += 1
        while low < high and state[at + high - 1] <= 0:
            high -= 1
        row_open[row, 0], row_open[row, 1] = low, high
        finished = finished and low >= high
    return finished


@njit(fastmath=FAST, error_model="numpy", forceinline=True)
def _blend(state, at, channels, features, i, dx, half_a, b_dy, c_dy, opacity, half_reach):
    """Blend one Gaussian into eight pixels; `state` holds their transmittance and channel sums, PITCH apart.

    A finished pixel keeps its last transmittance with a minus sign, so that nothing can be drawn on it any more.
    """
    s = dx * (dx * half_a + b_dy) + c_dy
    alpha = minimum(falloff(s) * opacity, ALPHA_CEILING)
    inside = s <= half_reach
    before = load(state, at)
    after = before * (1.0 - alpha)
    drawn = both(inside, after > TRANSMITTANCE_FLOOR)
    weight = select(drawn, alpha * before, 0.0)
    store(state, at, select(inside, select(drawn, after, 0.0 - absolute(before)), before))
    for channel in range(channels):
        there = at + (1 + channel) * PITCH
        store(state, there, load(state, there) + weight * features[i, channel])


@njit(fastmath=FAST, error_model="numpy")
def _tile_forward(tile, tiles_x, width, height, packed, features, tile_start, pair_splat, image, final):
    real = packed.dtype.type
    one, half = real(1), real(0.5)
    channels = features.shape[1]
    left, top = (tile % tiles_x) * TILE_PX, (tile // tiles_x) * TILE_PX
    right, bottom = min(left + TILE_PX, width), min(top + TILE_PX, height)
    row_size = (1 + channels) * PITCH
    state = np.zeros(TILE_PX * row_size, packed.dtype)
    row_open = np.zeros((TILE_PX, 2), np.int64)
    for row in range(bottom - top):
        row_open[row, 1] = right - left
        state[row * row_size : row * row_size + PITCH] = one
    lanes = ramp(one)
    for pair in range(tile_start[tile], tile_start[tile + 1]):
        i = pair_splat[pair]
        x, y, a, b, c = packed[i, 0], packed[i, 1], packed[i, 2], packed[i, 3], packed[i, 4]
        opacity, reach = packed[i, 5], packed[i, 6]
        half_a, half_reach = half * a, half * reach
        first_row, end_row = _range(y, packed[i, 7], half, top, bottom)
        first, end = _range(x, packed[i, 8], half, left, right)
        narrow = end - first <= LANES
        for py in range(first_row, end_row):
            row = py - top
            dy = real(py) + half - y
            low, high = left + row_open[row, 0], left + row_open[row, 1]
            b_dy, c_dy = b * dy, half * c * dy * dy
            run, run_end = _row_span(narrow, first, end, a, b, c, reach, x, dy, half, low, high)
            while run < run_end:
                dx = lanes + (real(run) + half - x)
                at = row * row_size + run - left
                _blend(state, at, channels, features, i, dx, half_a, b_dy, c_dy, opacity, half_reach)
                run += LANES
        if (pair & (COVERAGE_CHECK_EVERY - 1)) == 0 and _shrink_open_rows(state, row_size, row_open, bottom - top):
            break
    for py in range(top, bottom):
        at = (py - top) * row_size
        for px in range(left, right):
            final[py, px] = abs(state[at + px - left])
    for channel in range(channels):
        for py in range(top, bottom):
            at = (py - top) * row_size + (1 + channel) * PITCH
            for px in range(left, right):
                image[channel, py, px] = state[at + px - left]


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def draw_forward(packed, features, tiles_x, jobs, tile_start, pair_splat, image, final):
    """Blend the sorted Gaussians front to back.

    Args:
        packed: [N, PACKED] from `sorting.pack`.
        features: [N, F].
        tiles_x: number of tile columns.
        jobs: from `sorting.share_out`.
        tile_start: from `sorting.sort_into_tiles`.
        pair_splat: from `sorting.sort_into_tiles`.
        image: out [F, H, W] weighted sums, no background.
        final: out [H, W] transmittance that is left.
    """
    height, width = final.shape
    for job in prange(jobs.shape[0] - 1):
        for tile in range(jobs[job], jobs[job + 1]):
            _tile_forward(tile, tiles_x, width, height, packed, features, tile_start, pair_splat, image, final)


@njit(fastmath=FAST, error_model="numpy", forceinline=True)
def _unblend(state, at, channels, values, sums, dx, half_a, b_dy, c_dy, opacity, half_reach):
    """Gradient of the loss to -s in eight pixels; adds those to the features to `sums` and steps on in `state`.

    `state` holds the transmittance, the remaining sum, and the gradients to alpha and to each channel, PITCH apart.
    The remaining sum is weight * (gradient . feature) of everything still behind; it makes divisions by small
    transmittances unnecessary, and lets the backward pass run front to back like the forward one.
    """
    s = dx * (dx * half_a + b_dy) + c_dy
    raw = falloff(s) * opacity
    alpha = minimum(raw, ALPHA_CEILING)
    inside = s <= half_reach
    before = load(state, at)
    passed = 1.0 - alpha
    after = before * passed
    drawn = both(inside, after > TRANSMITTANCE_FLOOR)
    weight = select(drawn, alpha * before, 0.0)
    store(state, at, select(inside, select(drawn, after, 0.0), before))
    along = load(state, at + 2 * PITCH)
    for channel in range(channels):
        incoming = load(state, at + (3 + channel) * PITCH)
        along = along + incoming * values[channel]
        store(sums, channel * LANES, load(sums, channel * LANES) + weight * incoming)
    behind = load(state, at + PITCH) - weight * along
    store(state, at + PITCH, behind)
    return select(both(drawn, raw <= ALPHA_CEILING), raw * (before * along - behind / passed), 0.0)


@njit(fastmath=FAST, error_model="numpy")
def _load_tile(
    state, row_size, left, top, right, bottom, geometry_share, image, final, grad_image, grad_alpha,
):  # fmt: skip
    """Fill the state of `_unblend` with what it holds before the first Gaussian."""
    one = final.dtype.type(1)
    for py in range(top, bottom):
        at = (py - top) * row_size - left
        for px in range(left, right):
            gradient = grad_alpha[py, px]
            state[at + px] = one
            state[at + px + PITCH] = gradient * (one - final[py, px])
            state[at + px + 2 * PITCH] = gradient
        for channel in range(grad_image.shape[0]):
            share = geometry_share[channel]
            for px in range(left, right):
                gradient = grad_image[channel, py, px]
                state[at + px + PITCH] += share * gradient * image[channel, py, px]
                state[at + px + (3 + channel) * PITCH] = gradient


@njit(fastmath=FAST, error_model="numpy")
def _tile_backward(
    tile, tiles_x, width, height, packed, features, geometry_share, tile_start, pair_splat,
    image, final, grad_image, grad_alpha, grad_pairs,
):  # fmt: skip
    real = packed.dtype.type
    zero, one, half = real(0), real(1), real(0.5)
    channels = features.shape[1]
    left, top = (tile % tiles_x) * TILE_PX, (tile // tiles_x) * TILE_PX
    right, bottom = min(left + TILE_PX, width), min(top + TILE_PX, height)
    row_size = (3 + channels) * PITCH
    state = np.zeros(TILE_PX * row_size, packed.dtype)
    _load_tile(state, row_size, left, top, right, bottom, geometry_share, image, final, grad_image, grad_alpha)
    values, sums = np.empty(channels, packed.dtype), np.empty(channels * LANES, packed.dtype)
    row_open = np.zeros((TILE_PX, 2), np.int64)
    row_open[: bottom - top, 1] = right - left
    lanes, nothing = ramp(one), filled(zero)
    for pair in range(tile_start[tile], tile_start[tile + 1]):
        i = pair_splat[pair]
        x, y, a, b, c = packed[i, 0], packed[i, 1], packed[i, 2], packed[i, 3], packed[i, 4]
        opacity, reach = packed[i, 5], packed[i, 6]
        half_a, half_reach = half * a, half * reach
        sum_1, sum_x, sum_y, sum_xx, sum_xy, sum_yy = nothing, nothing, nothing, nothing, nothing, nothing
        for channel in range(channels):
            values[channel] = features[i, channel] * geometry_share[channel]
            store(sums, channel * LANES, nothing)
        first_row, end_row = _range(y, packed[i, 7], half, top, bottom)
        first, end = _range(x, packed[i, 8], half, left, right)
        narrow = end - first <= LANES
        for py in range(first_row, end_row):
            row = py - top
            dy = real(py) + half - y
            low, high = left + row_open[row, 0], left + row_open[row, 1]
            b_dy, c_dy = b * dy, half * c * dy * dy
            run, run_end = _row_span(narrow, first, end, a, b, c, reach, x, dy, half, low, high)
            while run < run_end:
                dx = lanes + (real(run) + half - x)
                at = row * row_size + run - left
                g = _unblend(state, at, channels, values, sums, dx, half_a, b_dy, c_dy, opacity, half_reach)
                g_x, g_y = g * dx, g * dy
                sum_1, sum_x, sum_y = sum_1 + g, sum_x + g_x, sum_y + g_y
                sum_xx, sum_xy, sum_yy = sum_xx + g_x * dx, sum_xy + g_x * dy, sum_yy + g_y * dy
                run += LANES
        # With s = (a dx^2 + c dy^2) / 2 + b dx dy, d = pixel - centre, and g the gradient to -s.
        total_x, total_y = total(sum_x), total(sum_y)
        grad_pairs[pair, 0], grad_pairs[pair, 1] = a * total_x + b * total_y, b * total_x + c * total_y
        grad_pairs[pair, 2], grad_pairs[pair, 3] = -half * total(sum_xx), -total(sum_xy)
        grad_pairs[pair, 4], grad_pairs[pair, 5] = -half * total(sum_yy), total(sum_1) / opacity
        for channel in range(channels):
            grad_pairs[pair, GEOMETRY + channel] = total(load(sums, channel * LANES))
        if (pair & (COVERAGE_CHECK_EVERY - 1)) == 0 and _shrink_open_rows(state, row_size, row_open, bottom - top):
            break


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def draw_backward(
    packed, features, geometry_share, tiles_x, jobs, tile_start, pair_splat, splat_start, splat_pairs,
    image, final, grad_image, grad_alpha, grad_pairs, grad_splats,
):  # fmt: skip
    """Gradients of `draw_forward`, per (Gaussian, tile) pair and then summed per Gaussian.

    Args:
        packed: [N, PACKED].
        features: [N, F].
        geometry_share: [F] how much of a channel's gradient reaches the geometry, 0 or 1.
        tiles_x: number of tile columns.
        jobs: from `sorting.share_out`.
        tile_start: from `sorting.sort_into_tiles`, like the next three.
        pair_splat: see there.
        splat_start: see there.
        splat_pairs: see there.
        image: [F, H, W] output of the forward pass.
        final: [H, W] output of the forward pass.
        grad_image: [F, H, W].
        grad_alpha: [H, W] gradient to 1 - final.
        grad_pairs: work space [pairs, GEOMETRY + F], zeros.
        grad_splats: out [N, GEOMETRY + F]: x, y, conic xx, xy, yy, opacity, features.
    """
    height, width = final.shape
    for job in prange(jobs.shape[0] - 1):
        for tile in range(jobs[job], jobs[job + 1]):
            _tile_backward(
                tile, tiles_x, width, height, packed, features, geometry_share, tile_start, pair_splat,
                image, final, grad_image, grad_alpha, grad_pairs,
            )  # fmt: skip
    for i in prange(packed.shape[0]):
        for column in range(grad_pairs.shape[1]):
            grad_splats[i, column] = 0
        for k in range(splat_start[i], splat_start[i + 1]):
            for column in range(grad_pairs.shape[1]):
                grad_splats[i, column] += grad_pairs[splat_pairs[k], column]


@njit(fastmath=FAST, error_model="numpy")
def _tile_medians(tile, tiles_x, width, height, packed, tile_start, pair_splat, medians):
    real = packed.dtype.type
    half = real(0.5)
    left, top = (tile % tiles_x) * TILE_PX, (tile // tiles_x) * TILE_PX
    right, bottom = min(left + TILE_PX, width), min(top + TILE_PX, height)
    medians[top:bottom, left:right] = -1
    state = np.ones(TILE_PX * PITCH, packed.dtype)
    before, lanes = np.empty(LANES, packed.dtype), ramp(real(1))
    for pair in range(tile_start[tile], tile_start[tile + 1]):
        i = pair_splat[pair]
        x, y, a, b, c = packed[i, 0], packed[i, 1], packed[i, 2], packed[i, 3], packed[i, 4]
        opacity, reach = packed[i, 5], packed[i, 6]
        first_row, end_row = _range(y, packed[i, 7], half, top, bottom)
        for py in range(first_row, end_row):
            dy = real(py) + half - y
            run, run_end = _span(a, b, c, reach, x, dy, half, left, right)
            while run < run_end:
                dx = lanes + (real(run) + half - x)
                at = (py - top) * PITCH + run - left
                store(before, 0, load(state, at))
                _blend(state, at, 0, packed, i, dx, half * a, b * dy, half * c * dy * dy, opacity, half * reach)
                for k in range(min(LANES, run_end - run)):
                    if before[k] > MEDIAN_TRANSMITTANCE and 0 < state[at + k] < before[k]:
                        medians[py, run + k] = i
                run += LANES


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def find_medians(packed, tiles_x, jobs, tile_start, pair_splat, medians):
    """Per pixel the Gaussian in whose depth half of the light is gone; like gsplat's, the last one if it never is.

    Args:
        packed: [N, PACKED].
        tiles_x: number of tile columns.
        jobs: from `sorting.share_out`.
        tile_start: from `sorting.sort_into_tiles`.
        pair_splat: from `sorting.sort_into_tiles`.
        medians: out int64 [H, W] the last drawn Gaussian that met a transmittance above a half, -1 where none is.
    """
    height, width = medians.shape
    for job in prange(jobs.shape[0] - 1):
        for tile in range(jobs[job], jobs[job + 1]):
            _tile_medians(tile, tiles_x, width, height, packed, tile_start, pair_splat, medians)
