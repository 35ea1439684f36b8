"""Which Gaussian touches which tile, and in which order: what the tile kernels read, compiled with numba."""

import math

import numpy as np
from numba import njit, prange

TILE_PX = 32
ALPHA_FLOOR = 1.0 / 255.0
# Footprints are cut here, so that positions in pixels always fit an integer.
FARTHEST_PX = 1.0e9
# Columns of a packed Gaussian: x, y, conic xx, xy, yy, opacity, 2 ln(255 opacity), half height and width in px.
PACKED = 9
# Digits of the radix sort have so many bits: 2048 counters stay in the first-level cache.
DIGIT_BITS = 11

FAST = {"contract", "reassoc", "arcp", "nsz", "afn"}


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def pack(means_px, conics, opacities, radii, tiles_x, tiles_y, packed, tile_box):
    """Bring what the tiles read of each Gaussian into one row, and find the tiles it touches.

    Args:
        means_px: [N, 2].
        conics: [N, 3].
        opacities: [N].
        radii: int32 [N, 2], 0 where nothing is drawn.
        tiles_x: number of tile columns.
        tiles_y: number of tile rows.
        packed: out [N, PACKED].
        tile_box: out int32 [N, 4] first and end tile in x, first and end in y; empty where nothing is drawn.
    """
    for i in prange(means_px.shape[0]):
        a, b, c = np.float64(conics[i, 0]), np.float64(conics[i, 1]), np.float64(conics[i, 2])
        x, y, opacity = np.float64(means_px[i, 0]), np.float64(means_px[i, 1]), np.float64(opacities[i])
        determinant = a * c - b * b
        reach, half_height, half_width = 0.0, 0.0, 0.0
        x0, x1, y0, y1 = 0.0, 0.0, 0.0, 0.0
        if radii[i, 0] > 0 and radii[i, 1] > 0 and opacity >= ALPHA_FLOOR and determinant > 0.0:
            # alpha = opacity exp(-q/2) reaches 1/255 where the quadratic form q = 2 ln(255 opacity).
            reach = 2.0 * math.log(opacity / ALPHA_FLOOR)
            half_width = min(math.sqrt(reach * c / determinant), FARTHEST_PX)
            half_height = min(math.sqrt(reach * a / determinant), FARTHEST_PX)
            x0 = min(max(math.floor((x - half_width) / TILE_PX), 0.0), tiles_x)
            x1 = min(max(math.floor((x + half_width) / TILE_PX) + 1.0, 0.0), tiles_x)
            y0 = min(max(math.floor((y - half_height) / TILE_PX), 0.0), tiles_y)
            y1 = min(max(math.floor((y + half_height) / TILE_PX) + 1.0, 0.0), tiles_y)
        tile_box[i, 0], tile_box[i, 1], tile_box[i, 2], tile_box[i, 3] = int(x0), int(x1), int(y0), int(y1)
        packed[i, 0], packed[i, 1] = x, y
        packed[i, 2], packed[i, 3], packed[i, 4] = a, b, c
        packed[i, 5], packed[i, 6], packed[i, 7], packed[i, 8] = opacity, reach, half_height, half_width


@njit(error_model="numpy", cache=True)
def front_to_back(depth_bits, tile_box):
    """Stable radix sort by depth of the Gaussians that touch a tile.

    Args:
        depth_bits: uint32 or uint64 [N], the bits of a positive depth, which sort like the depth itself.
        tile_box: int32 [N, 4] from `pack`.

    Returns:
        int32 [M], nearest first.
    """
    n = depth_bits.shape[0]
    now, count = np.empty(n, np.int32), 0
    for i in range(n):
        if tile_box[i, 1] > tile_box[i, 0] and tile_box[i, 3] > tile_box[i, 2]:
            now[count] = i
            count += 1
    now, then = now[:count], np.empty(count, np.int32)
    last_digit = (1 << DIGIT_BITS) - 1
    passes = (depth_bits.itemsize * 8 + DIGIT_BITS - 1) // DIGIT_BITS
    places = np.zeros((passes, 1 << DIGIT_BITS), np.int32)
    for k in range(count):
        for p in range(passes):
            places[p, (depth_bits[now[k]] >> (p * DIGIT_BITS)) & last_digit] += 1
    for p in range(passes):
        before = 0
        for digit in range(1 << DIGIT_BITS):
            before, places[p, digit] = before + places[p, digit], before
        for k in range(count):
            digit = (depth_bits[now[k]] >> (p * DIGIT_BITS)) & last_digit
            then[places[p, digit]] = now[k]
            places[p, digit] += 1
        now, then = then, now
    return now


@njit(error_model="numpy", cache=True)
def sort_into_tiles(order, tile_box, tiles_x, tiles_y):
    """Counting sort of the (Gaussian, tile) pairs: by tile, inside a tile by `order`.

    Args:
        order: int32 [M] Gaussians from front to back.
        tile_box: int32 [N, 4] from `pack`.
        tiles_x: number of tile columns.
        tiles_y: number of tile rows.

    Returns:
        tile_start: int64 [tiles + 1], pairs of tile t are tile_start[t] to tile_start[t + 1].
        pair_splat: int32 [pairs] the Gaussian of each pair.
        splat_start: int64 [N + 1], the pairs of Gaussian i are splat_pairs[splat_start[i] : splat_start[i + 1]].
        splat_pairs: int64 [pairs].
    """
    n = tile_box.shape[0]
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
    for k in range(order.shape[0]):
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


def share_out(tile_start: np.ndarray, jobs: int) -> np.ndarray:
    """Cut the tiles into runs of about equal work.

    Args:
        tile_start: int64 [tiles + 1] from `sort_into_tiles`.
        jobs: How many runs.

    Returns:
        int64 [jobs + 1], run j has the tiles from the j-th to the next number.
    """
    # An empty tile costs something too: its picture is written.
    work = tile_start + 16 * np.arange(len(tile_start))
    inner = np.searchsorted(work, np.linspace(0, work[-1], jobs + 1)[1:-1])
    return np.concatenate([[0], inner, [len(tile_start) - 1]]).astype(np.int64)
