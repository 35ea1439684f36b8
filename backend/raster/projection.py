"""Perspective projection of 3D Gaussians to 2D ones (EWA), forward and analytic backward, compiled with numba.

The constants are gsplat 1.5.3's, so that both back-ends draw the same picture. Storage may be float32 or float64;
the arithmetic is float64 throughout, because a projection costs little and cancellation in the 2D determinant is real.

The kernels are module-level functions that numba specialises per dtype: a closure could not be cached on disk.
"""

import math

import numpy as np
from numba import njit, prange

# Added to both diagonal entries of the 2D covariance, px^2: no Gaussian is narrower than about half a pixel.
BLUR_PX2 = 0.3
NEAR = 0.01
# Alpha below this is not drawn, so a footprint ends there, or at so many standard deviations.
ALPHA_FLOOR = 1.0 / 255.0
FARTHEST_SIGMAS = 3.33
# The ray direction used in the Jacobian is clamped this share of the frame beyond its edges.
EDGE_SHARE = 0.15
# A centre further away than this is culled, which also keeps not-a-number out of integer conversions.
FARTHEST_PX = 1.0e9
# Gaussians whose gradients to the camera are summed together.
BLOCK = 256

# Everything of fastmath except "no NaN, no infinity": the culling tests below rely on comparisons with NaN being false.
FAST = {"contract", "reassoc", "arcp", "nsz", "afn"}


@njit(fastmath=FAST, error_model="numpy")
def _camera_point(view, means, i):
    x, y, z = means[i, 0], means[i, 1], means[i, 2]
    return (
        view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3],
        view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3],
        view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3],
    )


@njit(fastmath=FAST, error_model="numpy")
def _unit_quaternion(rotations, i):
    w, x, y, z = (
        np.float64(rotations[i, 0]),
        np.float64(rotations[i, 1]),
        np.float64(rotations[i, 2]),
        np.float64(rotations[i, 3]),
    )
    inverse_norm = 1.0 / math.sqrt(w * w + x * x + y * y + z * z)
    return inverse_norm, w * inverse_norm, x * inverse_norm, y * inverse_norm, z * inverse_norm


@njit(fastmath=FAST, error_model="numpy")
def _rotation_matrix(w, x, y, z):
    return (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)),
        (2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),
        (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)),
    )


@njit(fastmath=FAST, error_model="numpy")
def _edge_limits(focal, centre, size):
    margin = EDGE_SHARE * size / focal
    return -(centre / focal + margin), (size - centre) / focal + margin


@njit(fastmath=FAST, error_model="numpy")
def _jacobian_row(view, axis, focal_over_z, slope):
    """One row of (Jacobian of the perspective division) times (rotation of the camera)."""
    return (
        focal_over_z * (view[axis, 0] - slope * view[2, 0]),
        focal_over_z * (view[axis, 1] - slope * view[2, 1]),
        focal_over_z * (view[axis, 2] - slope * view[2, 2]),
    )


@njit(fastmath=FAST, error_model="numpy")
def _row_times_matrix(row, m):
    return (
        row[0] * m[0][0] + row[1] * m[1][0] + row[2] * m[2][0],
        row[0] * m[0][1] + row[1] * m[1][1] + row[2] * m[2][1],
        row[0] * m[0][2] + row[1] * m[1][2] + row[2] * m[2][2],
    )


@njit(fastmath=FAST, error_model="numpy")
def _matrix_times_column(m, column):
    return (
        m[0][0] * column[0] + m[0][1] * column[1] + m[0][2] * column[2],
        m[1][0] * column[0] + m[1][1] * column[1] + m[1][2] * column[2],
        m[2][0] * column[0] + m[2][1] * column[1] + m[2][2] * column[2],
    )


@njit(fastmath=FAST, error_model="numpy")
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(fastmath=FAST, error_model="numpy")
def _scaled(a, scales, i):
    return a[0] * scales[i, 0], a[1] * scales[i, 1], a[2] * scales[i, 2]


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def project_forward(
    means, rotations, scales, opacities, view, intrinsics, width, height, antialiased,
    means_px, conics, opacities_2d, depths, radii,
):  # fmt: skip
    """Project every Gaussian; writes the five output arrays.

    A Gaussian is culled like in gsplat: too near, fainter than 1/255, or out of the frame with its whole footprint.

    Args:
        means: [N, 3] world units.
        rotations: [N, 4] quaternions wxyz, of any length above zero.
        scales: [N, 3] standard deviations, world units.
        opacities: [N] 0..1.
        view: [4, 4] float64 world to camera (OpenCV axes).
        intrinsics: [4] float64 fx, fy, cx, cy in px.
        width: frame width, px.
        height: frame height, px.
        antialiased: scale the opacity by the area that the blur added.
        means_px: out [N, 2], pixel centres at +0.5.
        conics: out [N, 3] inverse 2D covariance xx, xy, yy, 1/px^2.
        opacities_2d: out [N].
        depths: out [N] camera z.
        radii: out int32 [N, 2] half sizes of the footprint, px, rounded up as in gsplat; a culled Gaussian has zeros
            here and in every other output.
    """
    fx, fy, cx, cy = intrinsics[0], intrinsics[1], intrinsics[2], intrinsics[3]
    low_x, high_x = _edge_limits(fx, cx, width)
    low_y, high_y = _edge_limits(fy, cy, height)
    for i in prange(means.shape[0]):
        x, y, z = _camera_point(view, means, i)
        depths[i] = 0.0
        radii[i, 0] = radii[i, 1] = 0
        means_px[i, 0] = means_px[i, 1] = 0.0
        conics[i, 0] = conics[i, 1] = conics[i, 2] = 0.0
        opacities_2d[i] = 0.0
        if not z > NEAR:
            continue
        slope_x, slope_y = x / z, y / z
        u, v = fx * slope_x + cx, fy * slope_y + cy
        if not abs(u) + abs(v) < FARTHEST_PX:
            continue
        _, qw, qx, qy, qz = _unit_quaternion(rotations, i)
        rotation = _rotation_matrix(qw, qx, qy, qz)
        row_x = _jacobian_row(view, 0, fx / z, min(max(slope_x, low_x), high_x))
        row_y = _jacobian_row(view, 1, fy / z, min(max(slope_y, low_y), high_y))
        axes_x = _scaled(_row_times_matrix(row_x, rotation), scales, i)
        axes_y = _scaled(_row_times_matrix(row_y, rotation), scales, i)
        xx, xy, yy = _dot(axes_x, axes_x), _dot(axes_x, axes_y), _dot(axes_y, axes_y)
        sharp_determinant = xx * yy - xy * xy
        xx += BLUR_PX2
        yy += BLUR_PX2
        determinant = xx * yy - xy * xy
        if not (determinant > 0.0 and determinant < math.inf):
            continue
        share = math.sqrt(max(sharp_determinant / determinant, 0.0)) if antialiased else 1.0
        opacity = opacities[i] * share
        if not opacity >= ALPHA_FLOOR:
            continue
        extent = min(math.sqrt(2.0 * math.log(opacity / ALPHA_FLOOR)), FARTHEST_SIGMAS)
        radius_x, radius_y = math.ceil(extent * math.sqrt(xx)), math.ceil(extent * math.sqrt(yy))
        if not (u + radius_x > 0.0 and u - radius_x < width and v + radius_y > 0.0 and v - radius_y < height):
            continue
        radii[i, 0], radii[i, 1] = int(min(radius_x, FARTHEST_PX)), int(min(radius_y, FARTHEST_PX))
        means_px[i, 0], means_px[i, 1] = u, v
        conics[i, 0], conics[i, 1], conics[i, 2] = yy / determinant, -xy / determinant, xx / determinant
        opacities_2d[i], depths[i] = opacity, z


@njit(fastmath=FAST, error_model="numpy")
def _covariance_gradient(conic, grad_conic):
    """Gradient to the 2D covariance (xx, xy counted once for both entries, yy) from that to its inverse."""
    a, b, c = conic
    ga, gb, gc = grad_conic[0], 0.5 * grad_conic[1], grad_conic[2]
    left_xx, left_xy = a * ga + b * gb, a * gb + b * gc
    left_yx, left_yy = b * ga + c * gb, b * gb + c * gc
    return (
        -(left_xx * a + left_xy * b),
        -(left_xx * b + left_xy * c) - (left_yx * a + left_yy * b),
        -(left_yx * b + left_yy * c),
    )


@njit(fastmath=FAST, error_model="numpy")
def _sharp_gradient(sharp_xx, xy, sharp_yy, grad_conic, opacity, grad_opacity_2d, antialiased):
    """Gradients to the covariance before the blur (xx, xy counted once, yy) and to the opacity."""
    sharp_determinant = sharp_xx * sharp_yy - xy * xy
    xx, yy = sharp_xx + BLUR_PX2, sharp_yy + BLUR_PX2
    determinant = xx * yy - xy * xy
    d_xx, d_xy, d_yy = _covariance_gradient((yy / determinant, -xy / determinant, xx / determinant), grad_conic)
    if not antialiased:
        return d_xx, d_xy, d_yy, grad_opacity_2d
    share = math.sqrt(max(sharp_determinant / determinant, 0.0))
    if share > 0.0:
        per_share = grad_opacity_2d * opacity * 0.5 / share
        to_sharp = per_share / determinant
        to_blurred = -per_share * sharp_determinant / (determinant * determinant)
        d_xx += to_sharp * sharp_yy + to_blurred * yy
        d_yy += to_sharp * sharp_xx + to_blurred * xx
        d_xy -= 2.0 * xy * (to_sharp + to_blurred)
    return d_xx, d_xy, d_yy, grad_opacity_2d * share


@njit(fastmath=FAST, error_model="numpy")
def _quaternion_gradient(w, x, y, z, inverse_norm, g):
    """Gradient to the stored (not normalised) quaternion from that to the rotation matrix `g`."""
    dw = 2.0 * (z * (g[1][0] - g[0][1]) + y * (g[0][2] - g[2][0]) + x * (g[2][1] - g[1][2]))
    dx = 2.0 * (y * (g[0][1] + g[1][0]) + z * (g[0][2] + g[2][0]) + w * (g[2][1] - g[1][2])
                - 2.0 * x * (g[1][1] + g[2][2]))  # fmt: skip
    dy = 2.0 * (x * (g[0][1] + g[1][0]) + z * (g[1][2] + g[2][1]) + w * (g[0][2] - g[2][0])
                - 2.0 * y * (g[0][0] + g[2][2]))  # fmt: skip
    dz = 2.0 * (x * (g[0][2] + g[2][0]) + y * (g[1][2] + g[2][1]) + w * (g[1][0] - g[0][1])
                - 2.0 * z * (g[0][0] + g[1][1]))  # fmt: skip
    along = dw * w + dx * x + dy * y + dz * z
    return (
        (dw - along * w) * inverse_norm,
        (dx - along * x) * inverse_norm,
        (dy - along * y) * inverse_norm,
        (dz - along * z) * inverse_norm,
    )


@njit(fastmath=FAST, error_model="numpy")
def _outer_sum(a, b, c, d):
    """The matrix a b^T + c d^T."""
    return (
        (a[0] * b[0] + c[0] * d[0], a[0] * b[1] + c[0] * d[1], a[0] * b[2] + c[0] * d[2]),
        (a[1] * b[0] + c[1] * d[0], a[1] * b[1] + c[1] * d[1], a[1] * b[2] + c[1] * d[2]),
        (a[2] * b[0] + c[2] * d[0], a[2] * b[1] + c[2] * d[1], a[2] * b[2] + c[2] * d[2]),
    )


@njit(fastmath=FAST, error_model="numpy")
def _add_pose_gradient(
    sums, point, mean, x_row, y_row, used_x, used_y, d_row_x, d_row_y,
):  # fmt: skip
    """Add one Gaussian's gradient to the camera: `point` is that to its position, the rest those of the two rows."""
    for k in range(3):
        d_x, d_y = x_row * d_row_x[k], y_row * d_row_y[k]
        sums[k] += point[0] * mean[k] + d_x
        sums[4 + k] += point[1] * mean[k] + d_y
        sums[8 + k] += point[2] * mean[k] - used_x * d_x - used_y * d_y
        sums[4 * k + 3] += point[k]


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def project_backward(
    means, rotations, scales, opacities, view, intrinsics, width, height, antialiased, radii,
    grad_means_px, grad_conics, grad_opacities_2d, grad_depths,
    grad_means, grad_rotations, grad_scales, grad_opacities, grad_view,
):  # fmt: skip
    """Gradients of `project_forward`, added to the last five arrays.

    Where the ray direction was clamped at the frame's edge, its gradient through the Jacobian is zero.
    `grad_view` is float64 [blocks, 12]: rows of the upper three rows of the camera matrix, one per block of BLOCK
    Gaussians, so that its sum does not depend on the threads.
    """
    fx, fy, cx, cy = intrinsics[0], intrinsics[1], intrinsics[2], intrinsics[3]
    low_x, high_x = _edge_limits(fx, cx, width)
    low_y, high_y = _edge_limits(fy, cy, height)
    forward = (view[2, 0], view[2, 1], view[2, 2])
    for block in prange(grad_view.shape[0]):
        for i in range(block * BLOCK, min((block + 1) * BLOCK, means.shape[0])):
            if radii[i, 0] == 0 or radii[i, 1] == 0:
                continue
            x, y, z = _camera_point(view, means, i)
            inverse_norm, qw, qx, qy, qz = _unit_quaternion(rotations, i)
            rotation = _rotation_matrix(qw, qx, qy, qz)
            slope_x, slope_y = x / z, y / z
            used_x, used_y = min(max(slope_x, low_x), high_x), min(max(slope_y, low_y), high_y)
            row_x, row_y = _jacobian_row(view, 0, fx / z, used_x), _jacobian_row(view, 1, fy / z, used_y)
            unit_x, unit_y = _row_times_matrix(row_x, rotation), _row_times_matrix(row_y, rotation)
            axes_x, axes_y = _scaled(unit_x, scales, i), _scaled(unit_y, scales, i)
            d_conic = (grad_conics[i, 0], grad_conics[i, 1], grad_conics[i, 2])
            d_xx, d_xy, d_yy, d_opacity = _sharp_gradient(
                _dot(axes_x, axes_x), _dot(axes_x, axes_y), _dot(axes_y, axes_y), d_conic,
                np.float64(opacities[i]), np.float64(grad_opacities_2d[i]), antialiased,
            )  # fmt: skip
            grad_opacities[i] += d_opacity
            # Down to the two rows of J R_view R S, then split them into scale, rotation and camera-space position.
            d_axes_x = (
                2.0 * d_xx * axes_x[0] + d_xy * axes_y[0],
                2.0 * d_xx * axes_x[1] + d_xy * axes_y[1],
                2.0 * d_xx * axes_x[2] + d_xy * axes_y[2],
            )
            d_axes_y = (
                2.0 * d_yy * axes_y[0] + d_xy * axes_x[0],
                2.0 * d_yy * axes_y[1] + d_xy * axes_x[1],
                2.0 * d_yy * axes_y[2] + d_xy * axes_x[2],
            )
            for k in range(3):
                grad_scales[i, k] += d_axes_x[k] * unit_x[k] + d_axes_y[k] * unit_y[k]
            d_unit_x, d_unit_y = _scaled(d_axes_x, scales, i), _scaled(d_axes_y, scales, i)
            d_rotation = _outer_sum(row_x, d_unit_x, row_y, d_unit_y)
            d_quaternion = _quaternion_gradient(qw, qx, qy, qz, inverse_norm, d_rotation)
            for k in range(4):
                grad_rotations[i, k] += d_quaternion[k]
            d_row_x, d_row_y = _matrix_times_column(rotation, d_unit_x), _matrix_times_column(rotation, d_unit_y)
            # Both rows are proportional to 1/z; the clamped slope and the projected centre add their parts.
            d_z = -(_dot(d_row_x, row_x) + _dot(d_row_y, row_y)) / z
            d_slope_x, d_slope_y = fx * grad_means_px[i, 0], fy * grad_means_px[i, 1]
            if slope_x > low_x and slope_x < high_x:
                d_slope_x -= fx / z * _dot(d_row_x, forward)
            if slope_y > low_y and slope_y < high_y:
                d_slope_y -= fy / z * _dot(d_row_y, forward)
            d_z += grad_depths[i] - (d_slope_x * slope_x + d_slope_y * slope_y) / z
            d_point = (d_slope_x / z, d_slope_y / z, d_z)
            for k in range(3):
                grad_means[i, k] += view[0, k] * d_point[0] + view[1, k] * d_point[1] + view[2, k] * d_point[2]
            mean = (np.float64(means[i, 0]), np.float64(means[i, 1]), np.float64(means[i, 2]))
            _add_pose_gradient(grad_view[block], d_point, mean, fx / z, fy / z, used_x, used_y, d_row_x, d_row_y)
