"""The EWA projection of the first experiments, kept to compare speeds with; nothing in the project uses it."""

import math

import numpy as np
import torch
from numba import njit, prange


@njit(parallel=True, fastmath=True, error_model="numpy", cache=True)
def pfwd(me, q, s, op, V, K, W, H, eps, near, aa, m2, con, oo, z, rad):
    fx = K[0, 0]
    fy = K[1, 1]
    cx = K[0, 2]
    cy = K[1, 2]
    ux0 = -(cx / fx + 0.15 * W / fx)
    ux1 = (W - cx) / fx + 0.15 * W / fx
    uy0 = -(cy / fy + 0.15 * H / fy)
    uy1 = (H - cy) / fy + 0.15 * H / fy
    for i in prange(me.shape[0]):
        tx = V[0, 0] * me[i, 0] + V[0, 1] * me[i, 1] + V[0, 2] * me[i, 2] + V[0, 3]
        ty = V[1, 0] * me[i, 0] + V[1, 1] * me[i, 1] + V[1, 2] * me[i, 2] + V[1, 3]
        tz = V[2, 0] * me[i, 0] + V[2, 1] * me[i, 1] + V[2, 2] * me[i, 2] + V[2, 3]
        z[i] = tz
        rad[i] = 0
        m2[i, 0] = 0
        m2[i, 1] = 0
        con[i, 0] = 0
        con[i, 1] = 0
        con[i, 2] = 0
        oo[i] = 0
        if tz <= near:
            continue
        rz = 1 / tz
        n = 1 / math.sqrt(q[i, 0] ** 2 + q[i, 1] ** 2 + q[i, 2] ** 2 + q[i, 3] ** 2)
        w = q[i, 0] * n
        x = q[i, 1] * n
        y = q[i, 2] * n
        k = q[i, 3] * n
        ux = min(max(tx * rz, ux0), ux1)
        uy = min(max(ty * rz, uy0), uy1)
        # rows of J*Rv  (2x3)
        a0 = fx * rz * (V[0, 0] - ux * V[2, 0])
        a1 = fx * rz * (V[0, 1] - ux * V[2, 1])
        a2 = fx * rz * (V[0, 2] - ux * V[2, 2])
        b0 = fy * rz * (V[1, 0] - uy * V[2, 0])
        b1 = fy * rz * (V[1, 1] - uy * V[2, 1])
        b2 = fy * rz * (V[1, 2] - uy * V[2, 2])
        R00 = 1 - 2 * (y * y + k * k)
        R01 = 2 * (x * y - w * k)
        R02 = 2 * (x * k + w * y)
        R10 = 2 * (x * y + w * k)
        R11 = 1 - 2 * (x * x + k * k)
        R12 = 2 * (y * k - w * x)
        R20 = 2 * (x * k - w * y)
        R21 = 2 * (y * k + w * x)
        R22 = 1 - 2 * (x * x + y * y)
        p0 = (a0 * R00 + a1 * R10 + a2 * R20) * s[i, 0]
        p1 = (a0 * R01 + a1 * R11 + a2 * R21) * s[i, 1]
        p2 = (a0 * R02 + a1 * R12 + a2 * R22) * s[i, 2]
        r0 = (b0 * R00 + b1 * R10 + b2 * R20) * s[i, 0]
        r1 = (b0 * R01 + b1 * R11 + b2 * R21) * s[i, 1]
        r2 = (b0 * R02 + b1 * R12 + b2 * R22) * s[i, 2]
        c00 = p0 * p0 + p1 * p1 + p2 * p2
        c01 = p0 * r0 + p1 * r1 + p2 * r2
        c11 = r0 * r0 + r1 * r1 + r2 * r2
        d0 = c00 * c11 - c01 * c01
        c00 += eps
        c11 += eps
        d = c00 * c11 - c01 * c01
        if d <= 0:
            continue
        rad[i] = 1
        m2[i, 0] = fx * tx * rz + cx
        m2[i, 1] = fy * ty * rz + cy
        con[i, 0] = c11 / d
        con[i, 1] = -c01 / d
        con[i, 2] = c00 / d
        oo[i] = op[i] * (math.sqrt(max(d0 / d, 0.0)) if aa else 1.0)


@njit(parallel=True, fastmath=True, error_model="numpy", cache=True)
def pbwd(me, q, s, op, V, K, W, H, eps, aa, rad, gm2, gcon, go, gz, dme, dq, ds, dop):
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    ux0, ux1, uy0 = -(cx / fx + 0.15 * W / fx), (W - cx) / fx + 0.15 * W / fx, -(cy / fy + 0.15 * H / fy)
    uy1 = (H - cy) / fy + 0.15 * H / fy
    for i in prange(me.shape[0]):
        if rad[i] == 0:
            continue
        tx = V[0, 0] * me[i, 0] + V[0, 1] * me[i, 1] + V[0, 2] * me[i, 2] + V[0, 3]
        ty = V[1, 0] * me[i, 0] + V[1, 1] * me[i, 1] + V[1, 2] * me[i, 2] + V[1, 3]
        tz = V[2, 0] * me[i, 0] + V[2, 1] * me[i, 1] + V[2, 2] * me[i, 2] + V[2, 3]
        rz, n = 1 / tz, 1 / math.sqrt(q[i, 0] ** 2 + q[i, 1] ** 2 + q[i, 2] ** 2 + q[i, 3] ** 2)
        w, x, y, k = q[i, 0] * n, q[i, 1] * n, q[i, 2] * n, q[i, 3] * n
        vx, vy = tx * rz, ty * rz
        ux, uy = min(max(vx, ux0), ux1), min(max(vy, uy0), uy1)
        a0, a1 = fx * rz * (V[0, 0] - ux * V[2, 0]), fx * rz * (V[0, 1] - ux * V[2, 1])
        a2, b0 = fx * rz * (V[0, 2] - ux * V[2, 2]), fy * rz * (V[1, 0] - uy * V[2, 0])
        b1, b2 = fy * rz * (V[1, 1] - uy * V[2, 1]), fy * rz * (V[1, 2] - uy * V[2, 2])
        R00, R01, R02 = 1 - 2 * (y * y + k * k), 2 * (x * y - w * k), 2 * (x * k + w * y)
        R10, R11, R12 = 2 * (x * y + w * k), 1 - 2 * (x * x + k * k), 2 * (y * k - w * x)
        R20, R21, R22 = 2 * (x * k - w * y), 2 * (y * k + w * x), 1 - 2 * (x * x + y * y)
        e0, e1 = a0 * R00 + a1 * R10 + a2 * R20, a0 * R01 + a1 * R11 + a2 * R21
        e2, h0 = a0 * R02 + a1 * R12 + a2 * R22, b0 * R00 + b1 * R10 + b2 * R20
        h1, h2, s0, s1 = b0 * R01 + b1 * R11 + b2 * R21, b0 * R02 + b1 * R12 + b2 * R22, s[i, 0], s[i, 1]
        s2, p0, p1 = s[i, 2], e0 * s0, e1 * s1
        p2, r0, r1, r2 = e2 * s2, h0 * s0, h1 * s1, h2 * s2
        c00, c01, c11 = p0 * p0 + p1 * p1 + p2 * p2, p0 * r0 + p1 * r1 + p2 * r2, r0 * r0 + r1 * r1 + r2 * r2
        o00, o11, d0 = c00, c11, c00 * c11 - c01 * c01
        c00 += eps
        c11 += eps
        d = c00 * c11 - c01 * c01
        di = 1 / d
        A, B, C, gA = c11 * di, -c01 * di, c00 * di, gcon[i, 0]
        gB, gC = gcon[i, 1], gcon[i, 2]
        # dL/dcov = -con * Gsym * con  (Gsym off-diagonal gB/2)
        hB = 0.5 * gB
        t00, t01, t10, t11 = A * gA + B * hB, A * hB + B * gC, B * gA + C * hB, B * hB + C * gC
        g00, g11 = -(t00 * A + t01 * B), -(t10 * B + t11 * C)
        g01 = -(t00 * B + t01 * C) - (t10 * A + t11 * B)
        if aa:
            cmp_ = math.sqrt(max(d0 * di, 0.0))
            dop[i] = go[i] * cmp_
            if cmp_ > 0:
                gr = go[i] * op[i] * 0.5 / cmp_
                f0, f1 = gr * di, -gr * d0 * di * di
                g00 += f0 * o11 + f1 * c11
                g11 += f0 * o00 + f1 * c00
                g01 += -2 * c01 * (f0 + f1)
        else:
            dop[i] = go[i]
        gp0, gp1, gp2 = 2 * g00 * p0 + g01 * r0, 2 * g00 * p1 + g01 * r1, 2 * g00 * p2 + g01 * r2
        gr0, gr1, gr2 = 2 * g11 * r0 + g01 * p0, 2 * g11 * r1 + g01 * p1, 2 * g11 * r2 + g01 * p2
        ds[i, 0], ds[i, 1], ds[i, 2] = gp0 * e0 + gr0 * h0, gp1 * e1 + gr1 * h1, gp2 * e2 + gr2 * h2
        gp0 *= s0
        gp1 *= s1
        gp2 *= s2
        gr0 *= s0
        gr1 *= s1
        gr2 *= s2
        G00, G01, G02 = a0 * gp0 + b0 * gr0, a0 * gp1 + b0 * gr1, a0 * gp2 + b0 * gr2
        G10, G11, G12 = a1 * gp0 + b1 * gr0, a1 * gp1 + b1 * gr1, a1 * gp2 + b1 * gr2
        G20, G21, G22 = a2 * gp0 + b2 * gr0, a2 * gp1 + b2 * gr1, a2 * gp2 + b2 * gr2
        dw = 2 * (k * (G10 - G01) + y * (G02 - G20) + x * (G21 - G12))
        dx = 2 * (y * (G01 + G10) + k * (G02 + G20) + w * (G21 - G12) - 2 * x * (G11 + G22))
        dy = 2 * (x * (G01 + G10) + k * (G12 + G21) + w * (G02 - G20) - 2 * y * (G00 + G22))
        dk = 2 * (x * (G02 + G20) + y * (G12 + G21) + w * (G10 - G01) - 2 * k * (G00 + G11))
        dt = dw * w + dx * x + dy * y + dk * k
        dq[i, 0], dq[i, 1], dq[i, 2] = (dw - dt * w) * n, (dx - dt * x) * n, (dy - dt * y) * n
        dq[i, 3], ga0 = (dk - dt * k) * n, R00 * gp0 + R01 * gp1 + R02 * gp2
        ga1, ga2 = R10 * gp0 + R11 * gp1 + R12 * gp2, R20 * gp0 + R21 * gp1 + R22 * gp2
        gb0, gb1 = R00 * gr0 + R01 * gr1 + R02 * gr2, R10 * gr0 + R11 * gr1 + R12 * gr2
        gb2 = R20 * gr0 + R21 * gr1 + R22 * gr2
        grz = (ga0 * a0 + ga1 * a1 + ga2 * a2 + gb0 * b0 + gb1 * b1 + gb2 * b2) * tz
        gux = -fx * rz * (ga0 * V[2, 0] + ga1 * V[2, 1] + ga2 * V[2, 2])
        guy, gvx = -fy * rz * (gb0 * V[2, 0] + gb1 * V[2, 1] + gb2 * V[2, 2]), fx * gm2[i, 0]
        gvy = fy * gm2[i, 1]
        if vx > ux0 and vx < ux1:
            gvx += gux
        if vy > uy0 and vy < uy1:
            gvy += guy
        gtx, gty = gvx * rz, gvy * rz
        grz += gvx * tx + gvy * ty
        gtz = gz[i] - grz * rz * rz
        for c in range(3):
            dme[i, c] = V[0, c] * gtx + V[1, c] * gty + V[2, c] * gtz


class Proj(torch.autograd.Function):
    @staticmethod
    def forward(ctx, me, q, s, op, V, K, W, H, aa):
        a = [x.detach().contiguous().numpy() for x in (me, q, s, op, V, K)]
        N = len(a[0])
        dt = a[0].dtype
        o = [np.empty((N, 2), dt), np.empty((N, 3), dt), np.empty(N, dt), np.empty(N, dt), np.empty(N, np.int32)]
        pfwd(*a, W, H, dt.type(0.3), dt.type(0.01), aa, *o)
        ctx.s = (a, W, H, aa, o[4])
        r = torch.from_numpy(o[4])
        ctx.mark_non_differentiable(r)
        return tuple(torch.from_numpy(x) for x in o[:4]) + (r,)

    @staticmethod
    def backward(ctx, gm, gc, go, gz, _):
        a, W, H, aa, rad = ctx.s
        dt = a[0].dtype
        d = [np.zeros_like(x) for x in a[:4]]
        pbwd(*a, W, H, dt.type(0.3), aa, rad, *[x.contiguous().numpy() for x in (gm, gc, go, gz)], *d)
        return tuple(torch.from_numpy(x) for x in d) + (None,) * 5
