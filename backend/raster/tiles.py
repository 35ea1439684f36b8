"""Tile rasteriser of 2D Gaussians with any number of feature channels, forward and backward, compiled with numba.

Same rules as gsplat 1.5.3: alpha = min(0.999, opacity * exp(-s)), skipped below 1/255; a pixel stops before its
transmittance would fall to 1e-4; pixel centres at +0.5. The spans drawn per row are solved from alpha = 1/255, so
nothing outside is visited and nothing inside is missed.

Every tile and every Gaussian is summed by one thread in a fixed order: results do not depend on the thread count.
"""

import math

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

TILE_PX = 32
ALPHA_FLOOR = 1.0 / 255.0
ALPHA_CEILING = 0.999
TRANSMITTANCE_FLOOR = 1.0e-4
# Footprints are cut here, so that positions in pixels always fit an integer.
FARTHEST_PX = 1.0e9
# Fully covered pixels are looked for after this many Gaussians of a tile (a power of two).
COVERAGE_CHECK_EVERY = 16
# Columns of a packed Gaussian and of the gradient to it.
PACKED = 8  # x, y, conic xx, conic xy, conic yy, opacity, 2 ln(255 opacity), half height of the footprint in px
GEOMETRY = 6  # x, y, conic xx, conic xy, conic yy, opacity

FAST = {"contract", "reassoc", "arcp", "nsz", "afn"}
_EXP_CENTRE = 0.35
_EXP_FACTOR = math.exp(-_EXP_CENTRE)


def falloff(s):
    """exp(-s) for 0 <= s <= ln 255, in kernels only: a polynomial in float32, the exact function in float64."""
    raise NotImplementedError("falloff runs inside compiled kernels")


@overload(falloff, jit_options={"fastmath": FAST})
def _falloff(s):
    if s != types.float32:
        return lambda s: math.exp(-s)

    def polynomial(s):
        # exp(-s) = (exp(-0.35) exp(0.35 - s/8))^8 with |0.35 - s/8| <= 0.35: relative error 1e-6, the same on every CPU
        # and free of a vector maths library.
        r = np.float32(_EXP_CENTRE) - s * np.float32(0.125)
        p = np.float32(1.0 / 120.0) + r * np.float32(1.0 / 720.0)
        p = np.float32(1.0 / 24.0) + r * p
        p = np.float32(1.0 / 6.0) + r * p
        p = np.float32(0.5) + r * p
        p = np.float32(1.0) + r * p
        p = (np.float32(1.0) + r * p) * np.float32(_EXP_FACTOR)
        p = p * p
        p = p * p
        return p * p

    return polynomial


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def pack(means_px, conics, opacities, visible, tiles_x, tiles_y, packed, tile_box):
    """Bring what the tiles read of each Gaussian into one row, and find the tiles it touches.

    Args:
        means_px: [N, 2].
        conics: [N, 3].
        opacities: [N].
        visible: [N] bool.
        tiles_x: number of tile columns.
        tiles_y: number of tile rows.
        packed: out [N, PACKED].
        tile_box: out int32 [N, 4] first and end tile in x, first and end in y; empty where nothing is drawn.
    """
    for i in prange(means_px.shape[0]):
        a, b, c = np.float64(conics[i, 0]), np.float64(conics[i, 1]), np.float64(conics[i, 2])
        x, y, opacity = np.float64(means_px[i, 0]), np.float64(means_px[i, 1]), np.float64(opacities[i])
        determinant = a * c - b * b
        reach, half_height = 0.0, 0.0
        x0, x1, y0, y1 = 0.0, 0.0, 0.0, 0.0
        if visible[i] and opacity >= ALPHA_FLOOR and determinant > 0.0:
            reach = 2.0 * math.log(opacity * 255.0)
            half_width = min(math.sqrt(reach * c / determinant), FARTHEST_PX)
            half_height = min(math.sqrt(reach * a / determinant), FARTHEST_PX)
            x0 = min(max(math.floor((x - half_width) / TILE_PX), 0.0), tiles_x)
            x1 = min(max(math.floor((x + half_width) / TILE_PX) + 1.0, 0.0), tiles_x)
            y0 = min(max(math.floor((y - half_height) / TILE_PX), 0.0), tiles_y)
            y1 = min(max(math.floor((y + half_height) / TILE_PX) + 1.0, 0.0), tiles_y)
        tile_box[i, 0], tile_box[i, 1], tile_box[i, 2], tile_box[i, 3] = int(x0), int(x1), int(y0), int(y1)
        packed[i, 0], packed[i, 1] = x, y
        packed[i, 2], packed[i, 3], packed[i, 4] = a, b, c
        packed[i, 5], packed[i, 6], packed[i, 7] = opacity, reach, half_height


@njit(error_model="numpy", cache=True)
def sort_into_tiles(order, tile_box, tiles_x, tiles_y):
    """Counting sort of the (Gaussian, tile) pairs: by tile, inside a tile by `order`.

    Args:
        order: int [N] Gaussians from front to back.
        tile_box: int32 [N, 4] from `pack`.
        tiles_x: number of tile columns.
        tiles_y: number of tile rows.

    Returns:
        tile_start: int64 [tiles + 1], pairs of tile t are tile_start[t] to tile_start[t + 1].
        pair_splat: int32 [pairs] the Gaussian of each pair.
        splat_start: int64 [N + 1], the pairs of Gaussian i are splat_pairs[splat_start[i] : splat_start[i + 1]].
        splat_pairs: int64 [pairs].
    """
    n = order.shape[0]
    tile_start = np.zeros(tiles_x * tiles_y + 1, np.int64)
    splat_start = np.empty(n + 1, np.int64)
    pairs = 0
    for i in range(n):
        splat_start[i] = pairs
        for tile_y in range(tile_box[i, 2], tile_box[i, 3]):
            for tile_x in range(tile_box[i, 0], tile_box[i, 1]):
                tile_start[tile_y * tiles_x + tile_x + 1] += 1
                pairs += 1
    splat_start[n] = pairs
    for t in range(tiles_x * tiles_y):
        tile_start[t + 1] += tile_start[t]
    cursor = tile_start[:-1].copy()
    pair_splat = np.empty(pairs, np.int32)
    splat_pairs = np.empty(pairs, np.int64)
    for k in range(n):
        i = order[k]
        j = splat_start[i]
        for tile_y in range(tile_box[i, 2], tile_box[i, 3]):
            for tile_x in range(tile_box[i, 0], tile_box[i, 1]):
                t = tile_y * tiles_x + tile_x
                pair_splat[cursor[t]] = i
                splat_pairs[j] = cursor[t]
                cursor[t] += 1
                j += 1
    return tile_start, pair_splat, splat_start, splat_pairs


@njit(fastmath=FAST, error_model="numpy")
def _row_range(y, half_height, half, top, bottom):
    first, end = math.ceil(y - half_height - half), math.floor(y + half_height - half) + 1
    return int(min(max(first, top), bottom)), int(min(max(end, top), bottom))


@njit(fastmath=FAST, error_model="numpy")
def _span(a, b, c, reach, x, dy, half, left, right):
    """Pixels of one row where a dx^2 + 2 b dx dy + c dy^2 <= reach, cut to [left, right). `half` is 0.5, typed."""
    b_dy = b * dy
    discriminant = b_dy * b_dy - a * (c * dy * dy - reach)
    if not discriminant > 0:
        return left, left
    half_length = math.sqrt(discriminant) / a
    middle = x - b_dy / a
    first, end = math.ceil(middle - half_length - half), math.floor(middle + half_length - half) + 1
    return int(min(max(first, left), right)), int(min(max(end, left), right))


@njit(fastmath=FAST, error_model="numpy")
def _shrink_open_rows(transmittance, row_open):
    """Move the ends of each row's open range past covered pixels; True when the whole tile is covered."""
    covered = True
    for row in range(TILE_PX):
        low, high = row_open[row, 0], row_open[row, 1]
        while low < high and transmittance[row, low] == 0:
            low += 1
        while low < high and transmittance[row, high - 1] == 0:
            high -= 1
        row_open[row, 0], row_open[row, 1] = low, high
        covered = covered and low >= high
    return covered


@njit(fastmath=FAST, error_model="numpy")
def _tile_forward(tile, tiles_x, width, height, packed, features, tile_start, pair_splat, image, final):
    real = packed.dtype.type
    one, half, ceiling, floor = real(1), real(0.5), real(ALPHA_CEILING), real(TRANSMITTANCE_FLOOR)
    channels = features.shape[1]
    left, top = (tile % tiles_x) * TILE_PX, (tile // tiles_x) * TILE_PX
    right, bottom = min(left + TILE_PX, width), min(top + TILE_PX, height)
    # `live` falls to zero when a pixel is finished, `kept` stays at its last value before that.
    live, kept = np.ones((TILE_PX, TILE_PX), packed.dtype), np.ones((TILE_PX, TILE_PX), packed.dtype)
    total = np.zeros((channels, TILE_PX, TILE_PX), packed.dtype)
    weights = np.empty(TILE_PX, packed.dtype)
    row_open = np.zeros((TILE_PX, 2), np.int64)
    row_open[: bottom - top, 1] = right - left
    for pair in range(tile_start[tile], tile_start[tile + 1]):
        i = pair_splat[pair]
        x, y, a, b, c = packed[i, 0], packed[i, 1], packed[i, 2], packed[i, 3], packed[i, 4]
        opacity, reach = packed[i, 5], packed[i, 6]
        half_a = half * a
        first_row, end_row = _row_range(y, packed[i, 7], half, top, bottom)
        for py in range(first_row, end_row):
            row = py - top
            dy = real(py) + half - y
            start, end = _span(a, b, c, reach, x, dy, half, left + row_open[row, 0], left + row_open[row, 1])
            n = end - start
            if n <= 0:
                continue
            b_dy, c_dy = b * dy, half * c * dy * dy
            dx0 = real(start) + half - x
            first = start - left
            row_live, row_kept = live[row, first : first + n], kept[row, first : first + n]
            for j in range(n):
                dx = dx0 + real(j)
                alpha = opacity * falloff(dx * (half_a * dx + b_dy) + c_dy)
                alpha = alpha if alpha < ceiling else ceiling
                before = row_live[j]
                after = before * (one - alpha)
                drawn = after > floor
                weights[j] = alpha * before if drawn else real(0)
                row_live[j] = after if drawn else real(0)
                row_kept[j] = after if drawn else row_kept[j]
            for channel in range(channels):
                value = features[i, channel]
                row_total = total[channel, row, first : first + n]
                for j in range(n):
                    row_total[j] += weights[j] * value
        if (pair & (COVERAGE_CHECK_EVERY - 1)) == 0 and _shrink_open_rows(live, row_open):
            break
    for py in range(top, bottom):
        for px in range(left, right):
            final[py, px] = kept[py - top, px - left]
    for channel in range(channels):
        for py in range(top, bottom):
            for px in range(left, right):
                image[channel, py, px] = total[channel, py - top, px - left]


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def draw_forward(packed, features, tiles_x, tiles_y, tile_start, pair_splat, image, final):
    """Blend the sorted Gaussians front to back.

    Args:
        packed: [N, PACKED] from `pack`.
        features: [N, F].
        tiles_x: number of tile columns.
        tiles_y: number of tile rows.
        tile_start: from `sort_into_tiles`.
        pair_splat: from `sort_into_tiles`.
        image: out [F, H, W] weighted sums, no background.
        final: out [H, W] transmittance that is left.
    """
    height, width = final.shape
    for tile in prange(tiles_x * tiles_y):
        _tile_forward(tile, tiles_x, width, height, packed, features, tile_start, pair_splat, image, final)


@njit(fastmath=FAST, error_model="numpy")
def _tile_backward(
    tile, tiles_x, width, height, packed, features, tile_start, pair_splat,
    image, final, grad_image, grad_alpha, grad_pairs,
):  # fmt: skip
    # Runs front to back like the forward pass. `remaining` is, per pixel, the sum of weight * (gradient . feature) of
    # everything still behind, so no division by small transmittances occurs.
    real = packed.dtype.type
    zero, one, half = real(0), real(1), real(0.5)
    ceiling, floor = real(ALPHA_CEILING), real(TRANSMITTANCE_FLOOR)
    channels = features.shape[1]
    left, top = (tile % tiles_x) * TILE_PX, (tile // tiles_x) * TILE_PX
    right, bottom = min(left + TILE_PX, width), min(top + TILE_PX, height)
    live = np.ones((TILE_PX, TILE_PX), packed.dtype)
    remaining = np.zeros((TILE_PX, TILE_PX), packed.dtype)
    incoming = np.zeros((channels + 1, TILE_PX, TILE_PX), packed.dtype)  # the last one is alpha's
    along, weights = np.empty(TILE_PX, packed.dtype), np.empty(TILE_PX, packed.dtype)
    row_open = np.zeros((TILE_PX, 2), np.int64)
    row_open[: bottom - top, 1] = right - left
    for py in range(top, bottom):
        for px in range(left, right):
            gradient = grad_alpha[py, px]
            incoming[channels, py - top, px - left] = gradient
            remaining[py - top, px - left] = gradient * (one - final[py, px])
    for channel in range(channels):
        for py in range(top, bottom):
            for px in range(left, right):
                gradient = grad_image[channel, py, px]
                incoming[channel, py - top, px - left] = gradient
                remaining[py - top, px - left] += gradient * image[channel, py, px]
    for pair in range(tile_start[tile], tile_start[tile + 1]):
        i = pair_splat[pair]
        x, y, a, b, c = packed[i, 0], packed[i, 1], packed[i, 2], packed[i, 3], packed[i, 4]
        opacity, reach = packed[i, 5], packed[i, 6]
        half_a = half * a
        sum_1, sum_x, sum_y, sum_xx, sum_xy, sum_yy = zero, zero, zero, zero, zero, zero
        first_row, end_row = _row_range(y, packed[i, 7], half, top, bottom)
        for py in range(first_row, end_row):
            row = py - top
            dy = real(py) + half - y
            start, end = _span(a, b, c, reach, x, dy, half, left + row_open[row, 0], left + row_open[row, 1])
            n = end - start
            if n <= 0:
                continue
            b_dy, c_dy = b * dy, half * c * dy * dy
            dx0 = real(start) + half - x
            first = start - left
            row_live, row_remaining = live[row, first : first + n], remaining[row, first : first + n]
            row_incoming = incoming[channels, row, first : first + n]
            for j in range(n):
                along[j] = row_incoming[j]
            for channel in range(channels):
                value = features[i, channel]
                row_incoming = incoming[channel, row, first : first + n]
                for j in range(n):
                    along[j] += row_incoming[j] * value
            row_1, row_x, row_xx = zero, zero, zero
            for j in range(n):
                dx = dx0 + real(j)
                raw = opacity * falloff(dx * (half_a * dx + b_dy) + c_dy)
                alpha = raw if raw < ceiling else ceiling
                before = row_live[j]
                after = before * (one - alpha)
                drawn = after > floor
                weight = alpha * before if drawn else zero
                weights[j] = weight
                row_live[j] = after if drawn else zero
                behind = row_remaining[j] - weight * along[j]
                row_remaining[j] = behind
                grad_raw = before * along[j] - behind / (one - alpha)
                grad_s = -raw * grad_raw if (drawn and raw <= ceiling) else zero
                row_1 += grad_s
                row_x += grad_s * dx
                row_xx += grad_s * dx * dx
            sum_1 += row_1
            sum_x += row_x
            sum_y += row_1 * dy
            sum_xx += row_xx
            sum_xy += row_x * dy
            sum_yy += row_1 * dy * dy
            for channel in range(channels):
                row_incoming = incoming[channel, row, first : first + n]
                value = zero
                for j in range(n):
                    value += weights[j] * row_incoming[j]
                grad_pairs[pair, GEOMETRY + channel] += value
        grad_pairs[pair, 0], grad_pairs[pair, 1] = -(a * sum_x + b * sum_y), -(b * sum_x + c * sum_y)
        grad_pairs[pair, 2], grad_pairs[pair, 3], grad_pairs[pair, 4] = half * sum_xx, sum_xy, half * sum_yy
        grad_pairs[pair, 5] = -sum_1 / opacity
        if (pair & (COVERAGE_CHECK_EVERY - 1)) == 0 and _shrink_open_rows(live, row_open):
            break


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def draw_backward(
    packed, features, tiles_x, tiles_y, tile_start, pair_splat, splat_start, splat_pairs,
    image, final, grad_image, grad_alpha, grad_pairs, grad_splats,
):  # fmt: skip
    """Gradients of `draw_forward`, per (Gaussian, tile) pair and then summed per Gaussian.

    Args:
        packed: [N, PACKED].
        features: [N, F].
        tiles_x: number of tile columns.
        tiles_y: number of tile rows.
        tile_start: from `sort_into_tiles`, like the next three.
        pair_splat: see there.
        splat_start: see there.
        splat_pairs: see there.
        image: [F, H, W] output of the forward pass.
        final: [H, W] output of the forward pass.
        grad_image: [F, H, W].
        grad_alpha: [H, W] gradient to 1 - final.
        grad_pairs: work space [pairs, GEOMETRY + F], zeros.
        grad_splats: out [N, GEOMETRY + F], zeros: x, y, conic xx, xy, yy, opacity, features.
    """
    height, width = final.shape
    for tile in prange(tiles_x * tiles_y):
        _tile_backward(
            tile, tiles_x, width, height, packed, features, tile_start, pair_splat,
            image, final, grad_image, grad_alpha, grad_pairs,
        )  # fmt: skip
    for i in prange(packed.shape[0]):
        for k in range(splat_start[i], splat_start[i + 1]):
            for column in range(grad_pairs.shape[1]):
                grad_splats[i, column] += grad_pairs[splat_pairs[k], column]
