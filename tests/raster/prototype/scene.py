"""Scene and torch spherical harmonics of the first experiments, kept to compare speeds with."""

import math

import torch


def scene(N, W, H, seed=0, dtype=torch.float32, scale=1.0):
    """avatar-like: a head shell + volume filling ~60% of the frame; Gaussian size set so that the surface is covered"""
    g = torch.Generator().manual_seed(seed)
    d = torch.randn(N, 3, generator=g)
    d = d / d.norm(dim=1, keepdim=True)
    r = 1.0 + 0.05 * torch.randn(N, 1, generator=g)
    means = d * r * torch.tensor([0.75, 1.0, 0.85])
    sp = math.sqrt(4 * math.pi * 0.75 / N)  # mean spacing
    scales = sp * 0.55 * scale * torch.exp(0.4 * torch.randn(N, 3, generator=g))
    scales[:, 2] *= 0.3
    quats = torch.randn(N, 4, generator=g)
    op = torch.sigmoid(1.0 + 1.5 * torch.randn(N, generator=g))
    sh = torch.randn(N, 16, 3, generator=g) * 0.1
    sh[:, 0] = torch.rand(N, 3, generator=g) * 2 - 1
    vm = torch.eye(4)
    vm[2, 3] = 3.2
    fl = 1.25 * W
    K = torch.tensor([[fl, 0, W / 2], [0, fl, H / 2], [0, 0, 1]])
    return [x.to(dtype) for x in (means, quats, scales, op, sh, vm, K)]


def sh_eval(deg, sh, dirs):
    d = torch.nn.functional.normalize(dirs, dim=1)
    x, y, z = d.unbind(1)
    B = [torch.full_like(x, 0.2820947917738781)]
    if deg > 0:
        B += [-0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x]
    if deg > 1:
        xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
        B += [
            1.092548430592079 * xy,
            -1.092548430592079 * yz,
            0.31539156525252 * (2 * zz - xx - yy),
            -1.092548430592079 * xz,
            0.5462742152960395 * (xx - yy),
        ]
    if deg > 2:
        B += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * xy * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    B = torch.stack(B, 1)
    return torch.clamp_min(torch.einsum("nk,nkc->nc", B, sh[:, : B.shape[1]]) + 0.5, 0)
