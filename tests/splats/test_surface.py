"""Even sampling of surfaces: spacing, coverage, frames."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from backend.splats.surface import disc_frames, sample_surface, vertex_normals


def _sphere(subdivisions: int = 4, radius: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """An octahedron, subdivided and pushed onto a sphere."""
    v = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float)
    f = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    for _ in range(subdivisions):
        a, b, c = v[f[:, 0]], v[f[:, 1]], v[f[:, 2]]
        n = len(v)
        k = np.arange(len(f))
        v = np.concatenate([v, (a + b) / 2, (b + c) / 2, (c + a) / 2])
        ab, bc, ca = n + k, n + len(f) + k, n + 2 * len(f) + k
        f = np.concatenate(
            [np.stack(t, 1) for t in ((f[:, 0], ab, ca), (ab, f[:, 1], bc), (ca, bc, f[:, 2]), (ab, bc, ca))]
        )
    return radius * v / np.linalg.norm(v, axis=1, keepdims=True), f.astype(np.int32)


@pytest.mark.parametrize("spacing", [0.006, 0.012])
def test_spacing_is_even_and_as_asked(spacing: float) -> None:
    vertices, triangles = _sphere()
    every = np.arange(len(triangles))
    s = sample_surface(vertices, triangles, every, np.full(len(triangles), spacing), seed=0)
    distance = cKDTree(s.positions_m).query(s.positions_m, k=2)[0][:, 1] / spacing
    assert distance.min() > 0.8
    assert np.percentile(distance, 99) < 1.3
    area = 4 * np.pi * 0.1**2
    assert len(s) * spacing**2 / area == pytest.approx(1.0, abs=0.15)


def test_no_point_of_the_surface_is_far_from_a_disc() -> None:
    vertices, triangles = _sphere()
    spacing = 0.008
    s = sample_surface(vertices, triangles, np.arange(len(triangles)), np.full(len(triangles), spacing), seed=1)
    probes = vertices[triangles].mean(axis=1)
    assert cKDTree(s.positions_m).query(probes)[0].max() < 1.15 * spacing


def test_both_sides_of_a_thin_sheet_are_covered() -> None:
    corners = np.array([[0, 0, 0], [0.1, 0, 0], [0.1, 0.1, 0], [0, 0.1, 0]], float)
    vertices = np.concatenate([corners, corners + [0, 0, 0.002]])
    triangles = np.array([[0, 2, 1], [0, 3, 2], [4, 5, 6], [4, 6, 7]], np.int32)
    s = sample_surface(vertices, triangles, np.arange(4), np.full(4, 0.008), seed=0)
    sides = np.bincount((s.positions_m[:, 2] > 0.001).astype(int))
    assert sides.min() > 0.9 * sides.max()


def test_only_the_subset_is_sampled_and_finer_triangles_get_more() -> None:
    vertices, triangles = _sphere()
    upper = np.flatnonzero(vertices[triangles][:, :, 1].min(axis=1) >= 0)
    right = vertices[triangles[upper]][:, :, 0].mean(axis=1) > 0
    s = sample_surface(vertices, triangles, upper, np.where(right, 0.004, 0.008), seed=0)
    assert np.isin(s.triangles, upper).all()
    assert (s.bary >= 0).all()
    np.testing.assert_allclose(s.bary.sum(axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(s.interpolate(vertices, triangles), s.positions_m, atol=1e-12)
    ratio = (s.positions_m[:, 0] > 0).sum() / (s.positions_m[:, 0] < 0).sum()
    assert 3.2 < ratio < 4.8


def test_same_seed_same_points_and_an_empty_subset() -> None:
    vertices, triangles = _sphere(2)
    a, b = (sample_surface(vertices, triangles, np.arange(20), np.full(20, 0.01), seed=5) for _ in range(2))
    np.testing.assert_array_equal(a.positions_m, b.positions_m)
    assert len(sample_surface(vertices, triangles, np.zeros(0, int), np.zeros(0), seed=0)) == 0
    with pytest.raises(ValueError, match="spacing"):
        sample_surface(vertices, triangles, np.arange(2), np.array([0.01, 0.0]), seed=0)


def test_frames_are_rotations_around_the_normal() -> None:
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(200, 3))
    normals[0], normals[1] = (0, 1, 0), (0, -1, 0)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    frames = disc_frames(normals)
    np.testing.assert_allclose(frames[:, :, 2], normals, atol=1e-12)
    np.testing.assert_allclose(frames.transpose(0, 2, 1) @ frames, np.tile(np.eye(3), (200, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(frames), 1, atol=1e-12)


def test_normals_of_a_sphere_point_outwards() -> None:
    vertices, triangles = _sphere()
    normals = vertex_normals(vertices, triangles)
    assert ((normals * vertices).sum(axis=1) / 0.1 > 0.995).all()
