"""Clouds for the laws of the formats: Hypothesis strategies with the values that break codecs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from blender_addon.shared.gaussians import SH_REST_COUNTS, GaussianCloud, wxyz_product, wxyz_to_matrices


def floats(shape: tuple[int, ...], low: float, high: float) -> st.SearchStrategy[np.ndarray]:
    elements = st.floats(low, high, width=32, allow_nan=False) | st.sampled_from([low, high, 0.0])
    return arrays(np.float32, shape, elements=elements, fill=st.nothing())


@st.composite
def clouds(draw: st.DrawFn, max_degree: int = 4, reach_m: float = 2000.0) -> GaussianCloud:
    """One to four Gaussians: opacity 0 and 1, scales from 1e-13 to 20,000, quaternions of either sign."""
    count, degree = draw(st.integers(1, 4)), draw(st.integers(0, max_degree))
    q = draw(floats((count, 4), -1.0, 1.0)).astype(np.float64)
    lengths = np.linalg.norm(q, axis=1, keepdims=True)
    q = np.where(lengths > 1e-3, q / np.maximum(lengths, 1e-3), [-1.0, 0.0, 0.0, 0.0])
    return GaussianCloud(
        draw(floats((count, 3), -reach_m, reach_m)),
        np.exp(draw(floats((count, 3), -30.0, 10.0))),
        q,
        draw(floats((count,), 0.0, 1.0)),
        draw(floats((count, 3), -4.0, 4.0)),
        draw(floats((count, SH_REST_COUNTS[degree], 3), -1.5, 1.5)),
    )


@contextmanager
def temporary(name: str) -> Iterator[Path]:
    """A path in a folder of its own: Hypothesis runs one test function many times, so `tmp_path` does not do."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / name


def turned_by(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N] 1 - |cos| of half the angle between quaternions [N, 4]; 0 for the same rotation, whatever its sign."""
    return 1 - np.abs(np.einsum("ij,ij->i", a.astype(np.float64), b.astype(np.float64)))


def ellipsoids_turned_by(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same for ellipsoids, which half a turn about an axis of their own leaves as they are."""
    half_turns = np.eye(4)
    return np.min([turned_by(wxyz_product(a.astype(np.float64), turn), b) for turn in half_turns], axis=0)


def covariances(cloud: GaussianCloud) -> np.ndarray:
    """[N, 3, 3]."""
    axes = wxyz_to_matrices(cloud.rotations_wxyz.astype(np.float64)) * cloud.scales_m[:, None].astype(np.float64)
    return axes @ axes.transpose(0, 2, 1)
