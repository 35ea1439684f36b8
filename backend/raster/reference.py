"""Dense reference of the rasteriser: every pixel against every Gaussian in plain torch. For tests only.

Written from gsplat's rules alone, with no code shared with the portable kernels. Memory grows with pixels x Gaussians.
"""

import torch
from torch import Tensor

from backend.raster.portable import Projected


def _rotation_matrices(rotations_wxyz: Tensor) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(rotations_wxyz, dim=1).unbind(1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], 1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], 1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], 1),
    ]
    return torch.stack(rows, 1)


def project(
    means: Tensor,
    rotations_wxyz: Tensor,
    scales: Tensor,
    opacities: Tensor,
    w2c: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    antialiased: bool,
) -> Projected:
    """Same contract as `backend.raster.portable.project`, differentiated by torch."""
    w2c, intrinsics = w2c.to(means), intrinsics.to(means)
    points = means @ w2c[:3, :3].T + w2c[:3, 3]
    visible = points[:, 2] > 0.01
    # Culled Gaussians stay in the arrays, at a harmless depth, so that no gradient becomes not-a-number.
    z = torch.where(visible, points[:, 2], torch.ones_like(points[:, 2]))
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    slope_x = torch.clamp(points[:, 0] / z, -cx / fx - margin_x, (width - cx) / fx + margin_x)
    slope_y = torch.clamp(points[:, 1] / z, -cy / fy - margin_y, (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [torch.stack([fx / z, zero, -fx * slope_x / z], 1), torch.stack([zero, fy / z, -fy * slope_y / z], 1)], 1
    )
    axes = jacobian @ w2c[:3, :3] @ (_rotation_matrices(rotations_wxyz) * scales[:, None, :])
    sharp = axes @ axes.transpose(1, 2)
    blurred = sharp + 0.3 * torch.eye(2).to(means)
    inverse = torch.linalg.inv(blurred)
    means_px = torch.stack([fx * points[:, 0] / z + cx, fy * points[:, 1] / z + cy], 1)
    if antialiased:
        opacities = opacities * torch.sqrt((torch.linalg.det(sharp) / torch.linalg.det(blurred)).clamp_min(0))
    conics = torch.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], 1)
    kept = visible[:, None]
    return Projected(means_px * kept, conics * kept, opacities * visible, points[:, 2], visible)


def draw(projected: Projected, features: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Same contract as `backend.raster.portable.draw`, differentiated by torch."""
    order = torch.argsort(projected.depths, stable=True)
    order = order[projected.visible[order]]
    centres, conics = projected.means_px[order], projected.conics[order]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x.reshape(-1), y.reshape(-1)], 1).to(features) + 0.5
    dx, dy = (pixels[:, None] - centres[None]).unbind(2)
    s = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alpha = torch.clamp_max(projected.opacities[order] * torch.exp(-s), 0.999)
    alpha = torch.where(alpha < 1 / 255, torch.zeros_like(alpha), alpha)
    # Transmittance only falls, so the pixels that stop are exactly those behind the first value at or below the floor.
    running = torch.cumprod(1 - alpha, 1)
    alpha = torch.where(running > 1e-4, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, 1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    image = ((alpha * before) @ features[order]).T.reshape(-1, height, width)
    covered = 1 - after[:, -1] if len(order) else torch.zeros(height * width).to(features)
    return image, covered.reshape(height, width)
