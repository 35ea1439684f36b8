"""Stripes, checks and dots that go on where the photo does not show them.

A limb is unrolled about its axis. The unseen part of its circumference repeats the seen one, mirrored at the border
and stretched so that both ends meet at the back: no streaks at the flanks, no seam behind.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

BAND_M = 0.05
"""Height of the bands in which a limb's axis is found."""

SEEN_PERCENTILE = 90
LEAST_SEEN = 0.6
"""Half of the seen angle is at least this, rad."""

CELL_M = 0.08
LEAST_IN_CELL = 20
FEWEST_CELLS = 12
LEAST_CONTRAST = 9.0
"""In Lab with half the lightness: the tenth part of a dotted garment's patches that vary least reach 11 to 25, those of
plain, folded or badged ones at most 6.7 (ten figures and the demo's portrait)."""

_LAB_WEIGHTS = np.array([0.5, 1.0, 1.0])

MEAN_ROW_M = 0.01
MEAN_SIGMA_ROWS = 4.0
SHADE_SIGMA_ROWS = 2.0
KEPT = 0.6
"""Contrast of the continued pattern: its phase is a guess, and a pattern out of phase is farther from the truth than
a plain cloth. Measured on development figures: 0.6 loses 0.1 dB against the best and still looks like the cloth."""


def unrolled(
    positions_m: np.ndarray, axis_m: np.ndarray, lateral_m: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Angles about the limbs' axes and the limbs' radii.

    Args:
        positions_m: [N, 3] in the T-pose, +z to the front.
        axis_m: [N] coordinate along the limb.
        lateral_m: [N] coordinate across it, at a right angle to z.
        groups: [N] int, one number per limb.

    Returns:
        [N] rad, 0 in front, positive towards positive `lateral_m`; [N] metres.
    """
    angle, radius = np.zeros(len(axis_m)), np.full(len(axis_m), 0.05)
    for group in np.unique(groups):
        index = np.flatnonzero(groups == group)
        band = np.floor((axis_m[index] - axis_m[index].min()) / BAND_M).astype(int)
        for b in np.unique(band):
            mine = index[band == b]
            across, deep = lateral_m[mine], positions_m[mine, 2]
            x, z = across - _middle(across), deep - _middle(deep)
            angle[mine] = np.arctan2(x, z)
            radius[mine] = max(0.5 * float(np.hypot(np.ptp(across), np.ptp(deep)) / np.sqrt(2)), 0.01)
    return angle, radius


def continued(
    photo: np.ndarray,
    axis_m: np.ndarray,
    angle: np.ndarray,
    radius_m: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    kept: float = KEPT,
) -> np.ndarray:
    """Colours of a pattern on the discs of one garment.

    Args:
        photo: [N, 3] colours, meaningful on `source`.
        axis_m: [N] coordinate along the limb.
        angle: [N] rad about its axis.
        radius_m: [N].
        source: Indices of seen discs.
        target: [M] indices of discs to be coloured.
        kept: Contrast about the mean of the height.

    Returns:
        [M, 3].
    """
    border = max(float(np.percentile(np.abs(angle[source]), SEEN_PERCENTILE)), LEAST_SEEN)
    beyond = np.clip((np.abs(angle) - border) / max(np.pi - border, 1e-6), 0, 1)
    folded = np.where(np.abs(angle) > border, np.sign(angle) * border * (1 - beyond), angle)
    key = np.stack([axis_m, radius_m * folded], axis=1)
    picked = source[cKDTree(key[source]).query(key[target])[1]]
    mean = _mean_by_height(axis_m[source], photo[source], axis_m[target])
    return mean + kept * (photo[picked] - mean)


def varies_everywhere(
    photo: np.ndarray, axis_m: np.ndarray, angle: np.ndarray, radius_m: np.ndarray, source: np.ndarray
) -> bool:
    """Whether a garment's colours vary strongly within a hand's breadth, in nearly all of what is seen of it.

    Dots too small to be a cloth of their own are found by this; badges, zips and folds are not everywhere.

    Args:
        photo: [N, 3] CIE Lab.
        axis_m: [N] coordinate along the limb.
        angle: [N] rad about its axis.
        radius_m: [N].
        source: Indices of seen discs.
    """
    row = np.floor((axis_m[source] - axis_m[source].min()) / CELL_M).astype(int)
    column = np.floor((radius_m * angle)[source] / CELL_M).astype(int)
    _, cell = np.unique(1000 * row + column, return_inverse=True)
    count = np.bincount(cell)
    variance = np.zeros(len(count))
    # shade over the height is no pattern
    shade = _mean_by_height(axis_m[source], photo[source], axis_m[source], SHADE_SIGMA_ROWS)
    for values in ((photo[source] - shade) * _LAB_WEIGHTS).T:
        mean = np.bincount(cell, values) / count
        variance += np.bincount(cell, (values - mean[cell]) ** 2) / count
    spread = np.sqrt(variance[count >= LEAST_IN_CELL])
    return len(spread) >= FEWEST_CELLS and float(np.percentile(spread, 10)) > LEAST_CONTRAST


def _middle(values: np.ndarray) -> float:
    return 0.5 * float(values.min() + values.max())


def _mean_by_height(
    axis_m: np.ndarray, colours: np.ndarray, wanted_m: np.ndarray, sigma_rows: float = MEAN_SIGMA_ROWS
) -> np.ndarray:
    """[M, 3] mean colour of a few rows around each wanted height."""
    start = float(axis_m.min())
    row = ((axis_m - start) / MEAN_ROW_M).astype(int)
    count = int(row.max()) + 1
    weight = gaussian_filter1d(np.bincount(row, minlength=count).astype(np.float64), sigma_rows)
    centres = start + (np.arange(count) + 0.5) * MEAN_ROW_M
    out = np.empty((len(wanted_m), 3))
    for c in range(3):
        total = gaussian_filter1d(np.bincount(row, colours[:, c], count), sigma_rows)
        out[:, c] = np.interp(wanted_m, centres, total / np.maximum(weight, 1e-9))
    return out
