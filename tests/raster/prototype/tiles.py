"""The numba tile rasteriser of the first experiments, kept to compare speeds with; nothing in the project uses it.

As it was measured then, but for its layout in lines, cached compilation, and float32 with tiles of 32 px as the only
variant.
"""

import math

import numba as nb
import numpy as np
import torch
from numba import njit, prange

AT = 1.0 / 255.0
dt = np.float32
f = nb.float32
TS = 32
E0 = dt(math.exp(-0.35))
c1, c2, c3, c4, c5, c6 = [dt(1 / math.factorial(k)) for k in range(1, 7)]
one = dt(1)
half = dt(0.5)
zero = dt(0)
mx = dt(0.999)
tmin = dt(1e-4)
e8 = dt(0.125)
sh = dt(0.35)
two = dt(2)


@njit(inline="always", fastmath=True)
def ex(s):
    r = sh - s * e8
    p = one + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * c6)))))
    p = p * E0
    p = p * p
    p = p * p
    return p * p


@njit(cache=True, parallel=True, fastmath=True)
def extents(m2, con, op, radii, W, H, tw, th, rect):
    n = m2.shape[0]
    for i in prange(n):
        rect[i, 0] = 0
        rect[i, 1] = 0
        rect[i, 2] = 0
        rect[i, 3] = 0
        if radii[i] > 0 and op[i] >= AT:
            A = con[i, 0]
            B = con[i, 1]
            C = con[i, 2]
            det = A * C - B * B
            if det > 0:
                k = 2 * math.log(op[i] * 255.0)
                hx = math.sqrt(k * C / det)
                hy = math.sqrt(k * A / det)
                x0 = max(0, int(math.floor((m2[i, 0] - hx) / TS)))
                x1 = min(tw, int(math.floor((m2[i, 0] + hx) / TS)) + 1)
                y0 = max(0, int(math.floor((m2[i, 1] - hy) / TS)))
                y1 = min(th, int(math.floor((m2[i, 1] + hy) / TS)) + 1)
                if x1 > x0 and y1 > y0:
                    rect[i, 0] = x0
                    rect[i, 1] = x1
                    rect[i, 2] = y0
                    rect[i, 3] = y1


@njit(cache=True)
def binning(order, rect, tw, th, gstart):
    n = order.shape[0]
    nt = tw * th
    off = np.zeros(nt + 1, np.int32)
    tot = 0
    for i in range(n):
        gstart[i] = tot
        for y in range(rect[i, 2], rect[i, 3]):
            for x in range(rect[i, 0], rect[i, 1]):
                off[y * tw + x + 1] += 1
                tot += 1
    gstart[n] = tot
    for t in range(nt):
        off[t + 1] += off[t]
    cur = off[:-1].copy()
    ids = np.empty(tot, np.int32)
    slot = np.empty(tot, np.int32)
    for k in range(n):
        i = order[k]
        j = gstart[i]
        for y in range(rect[i, 2], rect[i, 3]):
            for x in range(rect[i, 0], rect[i, 1]):
                t = y * tw + x
                p = cur[t]
                ids[p] = i
                slot[j] = p
                j += 1
                cur[t] = p + 1
    return off, ids, slot


@njit(inline="always")
def span(A, B, C, k, mxx, dy, X0, X1):
    # A dx^2 + 2B dx dy + C dy^2 <= k
    b = B * dy
    disc = b * b - A * (C * dy * dy - k)
    if disc <= 0:
        return 0, 0
    s = math.sqrt(disc) / A
    c = mxx - b / A
    a0 = int(math.ceil(c - s - half))
    a1 = int(math.floor(c + s - half)) + 1
    return max(a0, X0), min(a1, X1)


@njit(cache=True, parallel=True, fastmath=True, error_model="numpy")
def fwd(m2, con, op, feat, W, H, tw, th, off, ids, out, outT, last):
    NC = feat.shape[1]
    for t in prange(tw * th):
        X0 = (t % tw) * TS
        Y0 = (t // tw) * TS
        X1 = min(X0 + TS, W)
        Y1 = min(Y0 + TS, H)
        Tl = np.ones((TS, TS), f)
        Tf = np.ones((TS, TS), f)
        acc = np.zeros((NC, TS, TS), f)
        wb = np.empty(TS, f)
        e = off[t + 1]
        done = e
        for q in range(off[t], e):
            i = ids[q]
            A = con[i, 0]
            B = con[i, 1]
            C = con[i, 2]
            o = op[i]
            x_ = m2[i, 0]
            y_ = m2[i, 1]
            k = two * math.log(o * dt(255))
            hy = math.sqrt(k * A / (A * C - B * B))
            ya = max(Y0, int(math.ceil(y_ - hy - half)))
            yb = min(Y1, int(math.floor(y_ + hy - half)) + 1)
            hA = half * A
            for y in range(ya, yb):
                dy = f(y) + half - y_
                a0, a1 = span(A, B, C, k, x_, dy, X0, X1)
                n = a1 - a0
                if n <= 0:
                    continue
                bdy = B * dy
                cdy = half * C * dy * dy
                dx0 = f(a0) + half - x_
                ly = y - Y0
                lx = a0 - X0
                rT = Tl[ly, lx : lx + n]
                rF = Tf[ly, lx : lx + n]
                for j in range(n):
                    dx = dx0 + f(j)
                    s = dx * (hA * dx + bdy) + cdy
                    a = min(o * ex(s), mx)
                    tt = rT[j]
                    nt = tt * (one - a)
                    ok = nt > tmin
                    wb[j] = a * tt if ok else zero
                    rT[j] = nt if ok else zero
                    rF[j] = nt if ok else rF[j]
                for c in range(NC):
                    fc = feat[i, c]
                    ra = acc[c, ly, lx : lx + n]
                    for j in range(n):
                        ra[j] += wb[j] * fc
            if (q & 31) == 31:
                m = zero
                for yy in range(Y1 - Y0):
                    for xx in range(X1 - X0):
                        m = max(m, Tl[yy, xx])
                if m == zero:
                    done = q + 1
                    break
        last[t] = done
        for yy in range(Y1 - Y0):
            for xx in range(X1 - X0):
                outT[Y0 + yy, X0 + xx] = Tf[yy, xx]
            for c in range(NC):
                for xx in range(X1 - X0):
                    out[c, Y0 + yy, X0 + xx] = acc[c, yy, xx]


@njit(cache=True, parallel=True, fastmath=True, error_model="numpy")
def bwd(m2, con, op, feat, W, H, tw, th, off, ids, last, out, outT, dout, dA, buf):
    NC = feat.shape[1]
    for t in prange(tw * th):
        X0 = (t % tw) * TS
        Y0 = (t // tw) * TS
        X1 = min(X0 + TS, W)
        Y1 = min(Y0 + TS, H)
        Tl = np.ones((TS, TS), f)
        R = np.zeros((TS, TS), f)
        D = np.zeros((NC + 1, TS, TS), f)
        g = np.empty(TS, f)
        wb = np.empty(TS, f)
        vf = np.empty(NC, f)
        for yy in range(Y1 - Y0):
            for xx in range(X1 - X0):
                r = dA[Y0 + yy, X0 + xx]
                D[NC, yy, xx] = r
                R[yy, xx] = r * (one - outT[Y0 + yy, X0 + xx])
            for c in range(NC):
                for xx in range(X1 - X0):
                    d = dout[c, Y0 + yy, X0 + xx]
                    D[c, yy, xx] = d
                    R[yy, xx] += d * out[c, Y0 + yy, X0 + xx]
        for q in range(off[t], last[t]):
            i = ids[q]
            A = con[i, 0]
            B = con[i, 1]
            C = con[i, 2]
            o = op[i]
            x_ = m2[i, 0]
            y_ = m2[i, 1]
            k = two * math.log(o * dt(255))
            hy = math.sqrt(k * A / (A * C - B * B))
            ya = max(Y0, int(math.ceil(y_ - hy - half)))
            yb = min(Y1, int(math.floor(y_ + hy - half)) + 1)
            hA = half * A
            S0 = zero
            S1 = zero
            S2 = zero
            Sy = zero
            Sxy = zero
            Syy = zero
            for c in range(NC):
                vf[c] = zero
            for y in range(ya, yb):
                dy = f(y) + half - y_
                a0, a1 = span(A, B, C, k, x_, dy, X0, X1)
                n = a1 - a0
                if n <= 0:
                    continue
                bdy = B * dy
                cdy = half * C * dy * dy
                dx0 = f(a0) + half - x_
                ly = y - Y0
                lx = a0 - X0
                rT = Tl[ly, lx : lx + n]
                rR = R[ly, lx : lx + n]
                rd = D[NC, ly, lx : lx + n]
                for j in range(n):
                    g[j] = rd[j]
                for c in range(NC):
                    fc = feat[i, c]
                    rc = D[c, ly, lx : lx + n]
                    for j in range(n):
                        g[j] += rc[j] * fc
                s0 = zero
                s1 = zero
                s2 = zero
                for j in range(n):
                    dx = dx0 + f(j)
                    s = dx * (hA * dx + bdy) + cdy
                    ar = o * ex(s)
                    a = min(ar, mx)
                    tt = rT[j]
                    nt = tt * (one - a)
                    ok = nt > tmin
                    w = a * tt if ok else zero
                    wb[j] = w
                    rT[j] = nt if ok else zero
                    r = rR[j] - w * g[j]
                    rR[j] = r
                    da = tt * g[j] - r / (one - a)
                    vs = -a * da if (ok and ar <= mx) else zero
                    s0 += vs
                    s1 += vs * dx
                    s2 += vs * dx * dx
                S0 += s0
                S1 += s1
                S2 += s2
                Sy += s0 * dy
                Sxy += s1 * dy
                Syy += s0 * dy * dy
                for c in range(NC):
                    rc = D[c, ly, lx : lx + n]
                    v = zero
                    for j in range(n):
                        v += wb[j] * rc[j]
                    vf[c] += v
            buf[q, 0] = -(A * S1 + B * Sy)
            buf[q, 1] = -(B * S1 + C * Sy)
            buf[q, 2] = half * S2
            buf[q, 3] = Sxy
            buf[q, 4] = half * Syy
            buf[q, 5] = -S0 / o
            for c in range(NC):
                buf[q, 6 + c] = vf[c]


@njit(cache=True, parallel=True, fastmath=True)
def gather(gstart, slot, ids, off, last, tile_of, buf, out):
    n = gstart.shape[0] - 1
    K = buf.shape[1]
    for i in prange(n):
        for j in range(gstart[i], gstart[i + 1]):
            p = slot[j]
            for c in range(K):
                out[i, c] += buf[p, c]


class Rast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, m2, con, op, feat, depth, radii, W, H):
        a = [x.detach().contiguous().numpy() for x in (m2, con, op, feat)]
        N = len(a[0])
        tw = -(-W // TS)
        th = -(-H // TS)
        rect = np.empty((N, 4), np.int32)
        extents(a[0], a[1], a[2], radii.numpy(), W, H, tw, th, rect)
        order = np.argsort(depth.detach().numpy(), kind="stable").astype(np.int32)
        gstart = np.empty(N + 1, np.int32)
        off, ids, slot = binning(order, rect, tw, th, gstart)
        NC = a[3].shape[1]
        out = np.empty((NC, H, W), dt)
        T = np.empty((H, W), dt)
        last = np.empty(tw * th, np.int32)
        fwd(*a, W, H, tw, th, off, ids, out, T, last)
        ctx.s = (a, W, H, tw, th, off, ids, last, out, T, gstart, slot)
        return torch.from_numpy(out), 1 - torch.from_numpy(T)

    @staticmethod
    def backward(ctx, dout, dA):
        a, W, H, tw, th, off, ids, last, out, T, gstart, slot = ctx.s
        NC = a[3].shape[1]
        buf = np.zeros((len(ids), 6 + NC), dt)
        bwd(*a, W, H, tw, th, off, ids, last, out, T, dout.contiguous().numpy(), dA.contiguous().numpy(), buf)
        G = np.zeros((len(a[0]), 6 + NC), dt)
        gather(gstart, slot, ids, off, last, 0, buf, G)
        G = torch.from_numpy(G)
        return G[:, 0:2], G[:, 2:5], G[:, 5], G[:, 6:], None, None, None, None
