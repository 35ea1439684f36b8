"""The same drawing in plain torch, tiles in batches and Gaussians in chunks of depth, differentiated by autograd.

The best that torch alone does on a CPU: only tiles that still have Gaussians take part in a chunk.
"""

import torch

CHUNK = 64


def tile_lists(centres, conics, opacities, depths, radii, width, height, tile):
    """Gaussians of every tile, nearest first: (numbers of all pairs, first pair of each tile, count of each tile)."""
    tiles_x, tiles_y = -(-width // tile), -(-height // tile)
    a, b, c = conics.unbind(1)
    determinant = a * c - b * b
    reach = 2 * torch.log((opacities * 255).clamp_min(1))
    half = torch.stack([(reach * c / determinant).sqrt(), (reach * a / determinant).sqrt()], 1)
    limit = torch.tensor([tiles_x, tiles_y])
    first = ((centres - half) / tile).floor().nan_to_num(0).long().clamp_min(0).minimum(limit)
    end = ((centres + half) / tile).floor().nan_to_num(-1).long().add(1).clamp_min(0).minimum(limit)
    end[(radii == 0) | (opacities < 1 / 255)] = 0
    size = (end - first).clamp_min(0)
    count = size[:, 0] * size[:, 1]
    order = torch.argsort(depths)
    splats = torch.repeat_interleave(order, count[order])
    starts = torch.cumsum(count[order], 0) - count[order]
    place = torch.arange(len(splats)) - torch.repeat_interleave(starts, count[order])
    x = first[splats, 0] + place % size[splats, 0]
    y = first[splats, 1] + place // size[splats, 0]
    ids, by_tile = torch.sort(y * tiles_x + x, stable=True)
    counts = torch.bincount(ids, minlength=tiles_x * tiles_y)
    return splats[by_tile], torch.cumsum(counts, 0) - counts, counts


def draw(centres, conics, opacities, features, depths, radii, width, height, tile):
    """Image [F, H, W] and alpha [H, W]; width and height are multiples of `tile`."""
    with torch.no_grad():
        splats, starts, counts = tile_lists(centres, conics, opacities, depths, radii, width, height, tile)
    tiles_x = width // tile
    y, x = torch.meshgrid(torch.arange(tile), torch.arange(tile), indexing="ij")
    tiles = torch.arange(len(counts))
    corner = torch.stack([tiles % tiles_x, tiles // tiles_x], 1) * tile
    pixels = corner[:, None] + torch.stack([x.reshape(-1), y.reshape(-1)], 1) + 0.5  # [tiles, pixels, 2]
    light = torch.ones(len(counts), tile * tile)
    image = torch.zeros(len(counts), tile * tile, features.shape[1])
    for chunk in range(0, int(counts.max()), CHUNK):
        active = torch.nonzero(counts > chunk)[:, 0]
        slot = chunk + torch.arange(min(CHUNK, int(counts.max()) - chunk))
        there = slot[None] < counts[active, None]
        ids = splats[(starts[active, None] + slot[None]).clamp_max(len(splats) - 1)]  # [active, chunk]
        dx, dy = (pixels[active, :, None] - centres[ids][:, None]).unbind(3)
        a, b, c = conics[ids][:, None].unbind(3)
        s = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
        alpha = (opacities[ids][:, None] * torch.exp(-s)).clamp_max(0.999)
        alpha = torch.where((alpha >= 1 / 255) & there[:, None], alpha, 0)
        after = light[active, :, None] * torch.cumprod(1 - alpha, 2)
        alpha = torch.where(after > 1e-4, alpha, 0)
        after = light[active, :, None] * torch.cumprod(1 - alpha, 2)
        before = torch.cat([light[active, :, None], after[:, :, :-1]], 2)
        image = image.index_add(0, active, (alpha * before) @ features[ids])
        light = light.index_copy(0, active, after[:, :, -1])
    tiles_y = height // tile
    image = image.reshape(tiles_y, tiles_x, tile, tile, -1).permute(4, 0, 2, 1, 3).reshape(-1, height, width)
    return image, 1 - light.reshape(tiles_y, tiles_x, tile, tile).permute(0, 2, 1, 3).reshape(height, width)
