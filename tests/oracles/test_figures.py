"""Laws of the oracle figures and of the measures that compare an avatar with them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts.quality import Row, table_rows
from scripts.quality_figures import (
    FigureScore,
    best_shift,
    compare_poses,
    compare_views,
    cutout_view,
    orbit_w2c,
    score_cutout,
    shifted,
)
from tests.oracles.bodies import axis_angle, body_names, load_body, rotation_matrix, skin, stand
from tests.oracles.figures import AZIMUTHS_DEG, FigureTruth, load_figure
from tests.oracles.meshes import averaging, boundary_edges, clip, icosphere, sheet_of, solidify, subdivide
from tests.oracles.scene import look_from, orbit
from tests.oracles.stances import pose_of
from tests.oracles.wardrobe import DEVELOPMENT, REPORTED

HERE = Path(__file__).parent
# What an oracle of a generator must look like, and the conditions that it is given: prompts by side, a face's tokens.
INTERFACES = {
    "backend.context", "backend.diffusion.interfaces", "backend.diffusion.views", "backend.diffusion.face_adapter",
}  # fmt: skip
ROOT = HERE.parents[1]
MAKE = """
import sys
from pathlib import Path
from tests.oracles.figures import MakerSettings, make_photo
from tests.oracles.wardrobe import REPORTED
for name in sys.argv[1:]:
    make_photo(REPORTED[2], 0, Path(name), MakerSettings(96, 128, 96, 1, 1, 1), 1)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The dress figure made twice, tiny."""
    folder = tmp_path_factory.mktemp("figures")
    targets = (folder / "a", folder / "b")
    subprocess.run([sys.executable, "-c", MAKE, *map(str, targets)], cwd=ROOT, check=True, timeout=120)
    return targets


@pytest.fixture(scope="module")
def truth(small: tuple[Path, Path]) -> FigureTruth:
    return load_figure(small[0])


def test_the_oracle_imports_nothing_from_the_code_it_judges() -> None:
    for path in HERE.glob("*.py"):
        if path.name.startswith("test_"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            judged = [n for n in names if n.split(".")[0] in ("backend", "blender_addon", "scripts")]
            assert set(judged) <= INTERFACES, path.name


def test_reported_and_development_figures_share_no_body_and_no_seed() -> None:
    assert len(REPORTED) == 6 and len({s.body for s in REPORTED + DEVELOPMENT}) == 8
    assert len({s.seed for s in REPORTED + DEVELOPMENT}) == 8


@pytest.mark.parametrize("name", body_names())
def test_the_rest_pose_leaves_the_body_as_it_is(name: str) -> None:
    body = load_body(name)
    rest = skin(body, np.zeros((55, 3)), body.vertices_m, body.weights)
    np.testing.assert_allclose(rest, body.vertices_m, atol=1e-9)
    np.testing.assert_allclose(body.weights.sum(1), 1, atol=1e-12)
    arm = body.joints_m[[body.joint(f"left_{j}") for j in ("shoulder", "elbow", "wrist", "middle1")]]
    assert np.ptp(arm[:, 1:], axis=0).max() < 1e-6, "a T-pose's arm is straight along x"


def test_turning_the_root_turns_the_whole_body_about_the_pelvis() -> None:
    body = load_body("pear")
    pose = np.zeros((55, 3))
    pose[0] = [0.3, -1.1, 0.4]
    turn, pelvis = rotation_matrix(pose[0]), body.joints_m[0]
    posed = skin(body, pose, body.vertices_m, body.weights)
    np.testing.assert_allclose(posed, (body.vertices_m - pelvis) @ turn.T + pelvis, atol=1e-9)


def test_axis_angle_inverts_rodrigues() -> None:
    for vector in np.random.default_rng(0).uniform(-1.5, 1.5, (50, 3)):
        np.testing.assert_allclose(axis_angle(rotation_matrix(vector)), vector, atol=1e-9)


def test_a_mirrored_stance_gives_a_mirrored_pose() -> None:
    body, stance = load_body("lanky"), REPORTED[0].shots[1].stance
    from dataclasses import replace

    swapped = replace(
        stance, yaw=-stance.yaw, twist=-stance.twist, side_lean=-stance.side_lean, head_yaw=-stance.head_yaw,
        left_arm=stance.right_arm, right_arm=stance.left_arm, left_leg=stance.right_leg, right_leg=stance.left_leg,
    )  # fmt: skip
    one, two = stand(body, pose_of(body, stance)).joints_m, stand(body, pose_of(body, swapped)).joints_m
    left, right = body.joint("left_wrist"), body.joint("right_wrist")
    asymmetry = np.abs(body.joints_m[left] * [-1, 1, 1] - body.joints_m[right]).max()
    np.testing.assert_allclose(one[left] * [-1, 1, 1], two[right], atol=2e-3 + 3 * asymmetry)


def test_clipping_leaves_a_straight_edge_and_thickness_closes_a_sheet() -> None:
    points, triangles = icosphere(3)
    sheet = sheet_of(len(points), triangles, np.ones(len(points), bool))
    cut = clip(sheet, sheet.mix @ points[:, 1] - 0.1234)
    made = cut.mix @ points
    assert made[:, 1].min() == pytest.approx(0.1234, abs=1e-9)
    rim = np.unique(boundary_edges(cut.triangles))
    np.testing.assert_allclose(made[rim, 1], 0.1234, atol=1e-9)
    solid_points, solid = solidify(made, cut.triangles, 0.01)
    assert not len(boundary_edges(solid)) and len(solid_points) == 2 * len(made)
    assert len(subdivide(cut, 1).triangles) == 4 * len(cut.triangles)
    ones = averaging(len(made), cut.triangles) @ np.ones(len(made))
    np.testing.assert_allclose(ones, 1, atol=1e-12)


def test_orbits_turn_about_the_centre() -> None:
    centre = np.array([0.2, 0.9, -0.1])
    camera = look_from(centre, 3.0, 5.0, 700, (300, 400))
    for azimuth in AZIMUTHS_DEG:
        turned = orbit(camera, centre, azimuth)
        np.testing.assert_allclose(turned.project(centre[None])[0], [150, 200], atol=1e-6)
        np.testing.assert_allclose(orbit_w2c(camera.w2c, centre, azimuth), turned.w2c, atol=1e-12)
    left = orbit(camera, centre, 90)
    assert left.to_camera(centre[None] + [0.5, 0, 0])[0, 2] < 3.0, "at +90 the subject's left side is nearer"


def test_making_a_figure_twice_gives_the_same_bytes(small: tuple[Path, Path]) -> None:
    one, two = (load_figure(folder) for folder in small)
    np.testing.assert_array_equal(one.photo, two.photo)
    np.testing.assert_array_equal(one.other_view, two.other_view)
    for azimuth in AZIMUTHS_DEG:
        np.testing.assert_array_equal(one.views[azimuth], two.views[azimuth])


def test_true_joints_lie_on_the_figure_in_every_view(truth: FigureTruth) -> None:
    body = truth.joints_m[:22]
    pictures = {0: truth.alpha * 255} | {a: v[..., 3] for a, v in truth.views.items()}
    for azimuth, alpha in pictures.items():
        camera = truth.camera if azimuth == 0 else truth.view_camera(azimuth)
        column, row = np.floor(camera.project(body)).astype(int).T
        height, width = alpha.shape
        reach = 2  # a joint may lie a pixel beside a thin limb at this resolution
        near = [
            alpha[max(r - reach, 0) : r + reach + 1, max(c - reach, 0) : c + reach + 1].max()
            for r, c in zip(row, column, strict=True)
        ]
        assert row.min() >= 0 and row.max() < height and column.min() >= 0 and column.max() < width
        assert min(near) > 127, azimuth


def test_the_figure_fills_the_photo_and_differs_from_its_background(truth: FigureTruth) -> None:
    rows = np.flatnonzero((truth.alpha > 0.5).any(1))
    assert 0.7 < np.ptp(rows) / len(truth.alpha) < 0.95
    assert rows[0] > 0 and rows[-1] < len(truth.alpha) - 1
    inside, outside = truth.photo[truth.alpha > 0.9].mean(0), truth.photo[truth.alpha < 0.1].mean(0)
    assert np.abs(inside - outside).max() > 20


def test_a_perfect_avatar_scores_perfectly(truth: FigureTruth) -> None:
    for view in (*truth.views.values(), truth.other_view):
        score = compare_views(shifted(view / 255.0, (3, -4)), view / 255.0)
        assert score.iou == pytest.approx(1.0) and score.psnr_db == 99
    score = compare_poses(truth.joints_m, truth.camera.w2c, truth.joints_m, truth.camera.w2c)
    assert score.scaled_mm < 1e-9 and score.lean_deg == score.yaw_deg == 0


def test_a_known_error_is_measured_as_such(truth: FigureTruth) -> None:
    w2c, joints = truth.camera.w2c, truth.joints_m
    scaled = compare_poses(0.8 * joints + [0.3, 0.1, -2], w2c, joints, w2c)
    assert scaled.scale == pytest.approx(1.25) and scaled.scaled_mm < 1e-6 < scaled.root_mm
    turn = rotation_matrix(np.radians([0, 10, 0]))
    turned = compare_poses(joints @ turn.T, w2c, joints, w2c)
    assert turned.yaw_deg == pytest.approx(-10, abs=1e-6) or turned.yaw_deg == pytest.approx(10, abs=1e-6)
    # turning world and camera together changes nothing
    about = np.eye(4)
    about[:3, :3] = turn.T
    same = compare_poses(joints @ turn.T, w2c @ about, joints, w2c)
    assert same.scaled_mm < 1e-6 and abs(same.yaw_deg) < 1e-6 and abs(same.lean_deg) < 1e-6
    level = look_from(np.array([0, 0.9, 0]), 3.0, 0.0, 700, (300, 400)).w2c
    tilted = compare_poses(joints @ rotation_matrix(np.radians([7, 0, 0])).T, level, joints, level)
    assert tilted.lean_deg == pytest.approx(7, abs=0.05), "leaning towards the camera is positive"


def test_brightness_alone_costs_nothing_with_one_gain(truth: FigureTruth) -> None:
    view = truth.views[45] / 255.0
    darker = view * [0.6, 0.6, 0.6, 1.0]
    score = compare_views(darker, view)
    assert score.iou == 1 and score.psnr_gain_db > 90 > score.psnr_db
    assert best_shift(np.roll(view[..., 3] > 0.5, 5, 0), view[..., 3] > 0.5) == (-5, 0)


def test_the_cut_out_is_good_in_front_and_bad_from_the_side(truth: FigureTruth) -> None:
    front = cutout_view(truth, 0)
    camera = truth.view_camera(0)
    assert front.shape == (camera.height, camera.width, 4)
    views = score_cutout(truth).views
    assert views[90].iou < 0.15 and views[45].iou > views[90].iou and views[180].iou > 0.6
    zoomed = compare_views(front, np.concatenate([front[..., :3], front[..., 3:]], -1))
    assert zoomed.iou == 1


def test_table_rows_reduce_and_compare(truth: FigureTruth) -> None:
    pose = compare_poses(truth.joints_m, truth.camera.w2c, truth.joints_m * 1.1, truth.camera.w2c)
    perfect = {a: compare_views(v / 255.0, v / 255.0) for a, v in truth.views.items()}
    perfect[0] = perfect[45]
    method = FigureScore(pose, perfect, perfect[45])
    flat = score_cutout(truth)
    rows = {(row.name, row.against): row for row in table_rows([method, method], [], [flat, flat])}
    row = rows["iou_90_worst", "flat cut-out"]
    assert row.value == 1 and row.against_value == flat.views[90].iou and row.n == 2
    gain = rows["iou_gain_45_over_cutout_mean", ""]
    assert gain.value == pytest.approx(1 - (flat.views[45].iou + flat.views[-45].iou) / 2)
    assert Row("joint_error_mean", 30, "mm", "painted body", 60).ratio == 2
    assert set(row.to_json()) == {
        *("name", "value", "unit", "against", "against_value", "ratio", "n", "device", "note"),
    }
