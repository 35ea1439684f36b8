"""Dense reference of the rasteriser: every pixel against every Gaussian in plain torch. For tests only.

Written from gsplat's rules alone, with no code shared with the portable kernels. Memory grows with pixels x Gaussians.
"""

import math

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
    splats = (means, rotations_wxyz, scales, opacities)
    frames = [
        _project_one(*splats, view.to(means), k.to(means), width, height, antialiased)
        for view, k in zip(w2c, intrinsics, strict=True)
    ]
    return Projected(*(torch.stack(parts) for parts in zip(*frames, strict=True)))


def _project_one(
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
    points = means @ w2c[:3, :3].T + w2c[:3, 3]
    in_front = points[:, 2] > 0.01
    # Culled Gaussians stay in the arrays, at a harmless depth, so that no gradient becomes not-a-number.
    z = torch.where(in_front, points[:, 2], torch.ones_like(points[:, 2]))
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
    sigmas = torch.sqrt(2 * torch.log((opacities.detach() * 255).clamp_min(1))).clamp_max(3.33)
    half_sizes = torch.ceil(sigmas[:, None] * blurred.detach()[:, [0, 1], [0, 1]].sqrt())
    frame = torch.tensor([width, height]).to(means)
    in_frame = ((means_px + half_sizes > 0) & (means_px - half_sizes < frame)).all(1)
    visible = in_front & in_frame & (opacities >= 1 / 255)
    radii = (half_sizes * visible[:, None]).int()
    return Projected(means_px * visible[:, None], conics * visible[:, None], opacities * visible, z * visible, radii)


def shade(sh: Tensor, means: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Same contract as `backend.raster.portable.shade`: associated Legendre polynomials by their recurrence."""
    degree = int(sh.shape[1] ** 0.5) - 1
    directions = torch.nn.functional.normalize(means[None] - centres[:, None].to(means), dim=2)
    basis = torch.stack(_harmonics(degree, *directions.unbind(2)), 2)
    colours = (basis[..., None] * sh[None]).sum(2) + 0.5
    return colours.clamp_min(0) * (radii > 0).all(2, keepdim=True)


def _harmonics(degree: int, x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    """Real spherical harmonics at unit directions, band by band from -m to m, with the Condon-Shortley phase."""
    # cos(m phi) sin^m(theta) and its sine partner are the real and imaginary part of (x + iy)^m.
    cosines, sines = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(degree):
        cosine, sine = cosines[-1], sines[-1]
        cosines.append(x * cosine - y * sine)
        sines.append(x * sine + y * cosine)
    legendre: dict[tuple[int, int], Tensor] = {}  # P_lm / sin^m(theta)
    for m in range(degree + 1):
        legendre[m, m] = torch.full_like(z, float((-1) ** m * math.prod(range(1, 2 * m, 2))))
        for band in range(m + 1, degree + 1):
            below = legendre.get((band - 2, m), torch.zeros_like(z))
            legendre[band, m] = ((2 * band - 1) * z * legendre[band - 1, m] - (band + m - 1) * below) / (band - m)
    result = []
    for band in range(degree + 1):
        for m in range(-band, band + 1):
            k = abs(m)
            factorials = math.prod(range(band - k + 1, band + k + 1))
            norm = ((2 * band + 1) / (4 * math.pi * factorials) * (2 if m else 1)) ** 0.5
            result.append(norm * legendre[band, k] * (sines[k] if m < 0 else cosines[k]))
    return result


def draw(
    projected: Projected, features: Tensor, width: int, height: int, geometry: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Same contract as `backend.raster.portable.draw`, differentiated by torch."""
    images, alphas = [], []
    for camera in range(len(features)):
        frame = Projected(*(part[camera] for part in projected))
        weights, order = _weights(frame, features.dtype, width, height)
        values = features[camera, order]
        kept = torch.ones(values.shape[1], dtype=torch.bool) if geometry is None else geometry
        image = torch.where(kept, weights @ values, weights.detach() @ values)
        images.append(image.T.reshape(-1, height, width))
        alphas.append(weights.sum(1).reshape(height, width))
    return torch.stack(images), torch.stack(alphas)


def find_medians(projected: Projected, width: int, height: int) -> Tensor:
    """Same contract as `backend.raster.portable.find_medians`."""
    medians = []
    for camera in range(len(projected.means_px)):
        frame = Projected(*(part[camera].detach() for part in projected))
        weights, order = _weights(frame, frame.means_px.dtype, width, height)
        before = 1 - (torch.cumsum(weights, 1) - weights)
        place = torch.arange(1, len(order) + 1)
        last = (place * ((weights > 0) & (before > 0.5))).amax(1) if len(order) else torch.zeros(height * width).long()
        ids = torch.cat([torch.tensor([-1]), order])[last]
        medians.append(ids.reshape(height, width))
    return torch.stack(medians)


def _weights(frame: Projected, dtype: torch.dtype, width: int, height: int) -> tuple[Tensor, Tensor]:
    """What each visible Gaussian, front to back, contributes to each pixel [H W, M], and their numbers [M]."""
    order = torch.argsort(frame.depths, stable=True)
    order = order[(frame.radii[order] > 0).all(1)]
    centres, conics = frame.means_px[order], frame.conics[order]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x.reshape(-1), y.reshape(-1)], 1).to(dtype) + 0.5
    dx, dy = (pixels[:, None] - centres[None]).unbind(2)
    s = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alpha = torch.clamp_max(frame.opacities[order] * torch.exp(-s), 0.999)
    alpha = torch.where(alpha < 1 / 255, torch.zeros_like(alpha), alpha)
    # Transmittance only falls, so the pixels that stop are exactly those behind the first value at or below the floor.
    running = torch.cumprod(1 - alpha, 1)
    alpha = torch.where(running > 1e-4, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, 1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    return alpha * before, order
