"""Colours from spherical harmonics of degree 0 to 4, forward and backward, compiled with numba.

Basis, signs and order of INRIA's code and gsplat; colour = max(sum + 0.5, 0), the direction runs from the camera to
the Gaussian. A Gaussian that is culled (radius 0) has colour 0 and no gradient, as in gsplat.
"""

import math

import numpy as np
from numba import njit, prange

# sqrt of ratios of factorials over 4 pi, the real orthonormal basis; names are the band and the place in it.
C0 = 0.28209479177387814
C1 = 0.4886025119029199
C2A, C2B, C2C = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
C3A, C3B, C3C, C3D, C3E = (
    0.5900435899266435,
    2.890611442640554,
    0.4570457994644658,
    0.3731763325901154,
    1.445305721320277,
)
C4A, C4B, C4C, C4D = 2.5033429417967046, 1.7701307697799304, 0.9461746957575601, 0.6690465435572892
C4E, C4F, C4G = 0.10578554691520431, 0.47308734787878004, 0.6258357354491761

# Gaussians that share work space, and whose gradients to the camera are summed together.
BLOCK = 256
FAST = {"contract", "reassoc", "arcp", "nsz", "afn"}


@njit(fastmath=FAST, error_model="numpy")
def _basis(x, y, z, count, out):
    """The first `count` (1, 4, 9, 16 or 25) functions at a unit direction."""
    out[0] = C0
    if count < 4:
        return
    out[1], out[2], out[3] = -C1 * y, C1 * z, -C1 * x
    if count < 9:
        return
    xx, yy, zz = x * x, y * y, z * z
    out[4], out[5], out[7] = C2A * x * y, -C2A * y * z, -C2A * x * z
    out[6], out[8] = C2B * (2.0 * zz - xx - yy), C2C * (xx - yy)
    if count < 16:
        return
    out[9], out[15] = -C3A * y * (3.0 * xx - yy), -C3A * x * (xx - 3.0 * yy)
    out[10], out[14] = C3B * x * y * z, C3E * z * (xx - yy)
    out[11], out[13] = -C3C * y * (4.0 * zz - xx - yy), -C3C * x * (4.0 * zz - xx - yy)
    out[12] = C3D * z * (2.0 * zz - 3.0 * xx - 3.0 * yy)
    if count < 25:
        return
    out[16], out[24] = C4A * x * y * (xx - yy), C4G * (xx * (xx - 3.0 * yy) - yy * (3.0 * xx - yy))
    out[17], out[23] = -C4B * y * z * (3.0 * xx - yy), -C4B * x * z * (xx - 3.0 * yy)
    out[18], out[22] = C4C * x * y * (7.0 * zz - 1.0), C4F * (xx - yy) * (7.0 * zz - 1.0)
    out[19], out[21] = -C4D * y * z * (7.0 * zz - 3.0), -C4D * x * z * (7.0 * zz - 3.0)
    out[20] = C4E * (zz * (35.0 * zz - 30.0) + 3.0)


@njit(fastmath=FAST, error_model="numpy")
def _slopes(x, y, z, w):
    """Gradient to the direction of sum w_k basis_k; `w` holds 4, 9, 16 or 25 factors."""
    gx, gy, gz = -C1 * w[3], -C1 * w[1], C1 * w[2]
    count = w.shape[0]
    if count < 9:
        return gx, gy, gz
    gx += C2A * (y * w[4] - z * w[7]) - 2.0 * C2B * x * w[6] + 2.0 * C2C * x * w[8]
    gy += C2A * (x * w[4] - z * w[5]) - 2.0 * C2B * y * w[6] - 2.0 * C2C * y * w[8]
    gz += -C2A * (y * w[5] + x * w[7]) + 4.0 * C2B * z * w[6]
    if count < 16:
        return gx, gy, gz
    xx, yy, zz, xy, xz, yz = x * x, y * y, z * z, x * y, x * z, y * z
    gx += (-6.0 * C3A * xy * w[9] - 3.0 * C3A * (xx - yy) * w[15] + C3B * yz * w[10] + 2.0 * C3E * xz * w[14]
           + 2.0 * C3C * xy * w[11] - C3C * (4.0 * zz - 3.0 * xx - yy) * w[13] - 6.0 * C3D * xz * w[12])  # fmt: skip
    gy += (-3.0 * C3A * (xx - yy) * w[9] + 6.0 * C3A * xy * w[15] + C3B * xz * w[10] - 2.0 * C3E * yz * w[14]
           - C3C * (4.0 * zz - xx - 3.0 * yy) * w[11] + 2.0 * C3C * xy * w[13] - 6.0 * C3D * yz * w[12])  # fmt: skip
    gz += (C3B * xy * w[10] + C3E * (xx - yy) * w[14] - 8.0 * C3C * (yz * w[11] + xz * w[13])
           + 3.0 * C3D * (2.0 * zz - xx - yy) * w[12])  # fmt: skip
    if count < 25:
        return gx, gy, gz
    a, b = 7.0 * zz - 1.0, 7.0 * zz - 3.0
    gx += (C4A * y * (3.0 * xx - yy) * w[16] + 4.0 * C4G * x * (xx - 3.0 * yy) * w[24] - 6.0 * C4B * x * yz * w[17]
           - 3.0 * C4B * z * (xx - yy) * w[23] + C4C * y * a * w[18] + 2.0 * C4F * x * a * w[22]
           - C4D * z * b * w[21])  # fmt: skip
    gy += (C4A * x * (xx - 3.0 * yy) * w[16] + 4.0 * C4G * y * (yy - 3.0 * xx) * w[24] + 6.0 * C4B * x * yz * w[23]
           - 3.0 * C4B * z * (xx - yy) * w[17] + C4C * x * a * w[18] - 2.0 * C4F * y * a * w[22]
           - C4D * z * b * w[19])  # fmt: skip
    gz += (-C4B * y * (3.0 * xx - yy) * w[17] - C4B * x * (xx - 3.0 * yy) * w[23] + 14.0 * C4C * x * yz * w[18]
           + 14.0 * C4F * z * (xx - yy) * w[22] - 3.0 * C4D * a * (y * w[19] + x * w[21])
           + C4E * z * (140.0 * zz - 60.0) * w[20])  # fmt: skip
    return gx, gy, gz


@njit(fastmath=FAST, error_model="numpy")
def _direction(means, centre, i):
    x, y, z = means[i, 0] - centre[0], means[i, 1] - centre[1], means[i, 2] - centre[2]
    length = math.sqrt(x * x + y * y + z * z)
    inverse = 1.0 / length if length > 0.0 else 0.0
    return x * inverse, y * inverse, z * inverse, inverse


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def shade_forward(sh, means, centre, radii, colours):
    """Colours as one camera sees them.

    Args:
        sh: [N, K, 3] coefficients, K = 1, 4, 9, 16 or 25.
        means: [N, 3] world units.
        centre: float64 [3] the camera's place, world units.
        radii: int32 [N, 2], 0 where nothing is drawn.
        colours: out [N, 3].
    """
    n, count = sh.shape[0], sh.shape[1]
    for block in prange((n + BLOCK - 1) // BLOCK):
        basis = np.empty(count, sh.dtype)
        for i in range(block * BLOCK, min((block + 1) * BLOCK, n)):
            colours[i, 0] = colours[i, 1] = colours[i, 2] = 0.0
            if radii[i, 0] == 0 or radii[i, 1] == 0:
                continue
            x, y, z, _ = _direction(means, centre, i)
            _basis(x, y, z, count, basis)
            for channel in range(3):
                value = sh.dtype.type(0.5)
                for k in range(count):
                    value += basis[k] * sh[i, k, channel]
                colours[i, channel] = max(value, sh.dtype.type(0))


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def shade_backward(sh, means, centre, radii, grad_colours, grad_sh, grad_means, grad_centre):
    """Gradients of `shade_forward`, added to the last three arrays; `grad_centre` is float64 [blocks, 3].

    A colour that was cut at 0 passes none on; one of exactly 0 does, like torch's clamp.
    """
    n, count = sh.shape[0], sh.shape[1]
    zero = sh.dtype.type(0)
    for block in prange(grad_centre.shape[0]):
        basis, factors = np.empty(count, sh.dtype), np.empty(count, sh.dtype)
        incoming = np.empty(3, sh.dtype)
        for i in range(block * BLOCK, min((block + 1) * BLOCK, n)):
            if radii[i, 0] == 0 or radii[i, 1] == 0:
                continue
            x, y, z, inverse = _direction(means, centre, i)
            _basis(x, y, z, count, basis)
            for channel in range(3):
                value = sh.dtype.type(0.5)
                for k in range(count):
                    value += basis[k] * sh[i, k, channel]
                incoming[channel] = grad_colours[i, channel] if value >= zero else zero
            for k in range(count):
                factors[k] = zero
                for channel in range(3):
                    grad_sh[i, k, channel] += basis[k] * incoming[channel]
                    factors[k] += sh[i, k, channel] * incoming[channel]
            if count == 1:
                continue
            gx, gy, gz = _slopes(x, y, z, factors)
            # Only what turns the direction counts, and the further away the Gaussian is, the less.
            along = gx * x + gy * y + gz * z
            gx, gy, gz = (gx - along * x) * inverse, (gy - along * y) * inverse, (gz - along * z) * inverse
            grad_means[i, 0] += gx
            grad_means[i, 1] += gy
            grad_means[i, 2] += gz
            grad_centre[block, 0] -= gx
            grad_centre[block, 1] -= gy
            grad_centre[block, 2] -= gz
