"""What leaves Blender is what is seen there: splats in their pose, the skinned mesh, motion; in 4.2, 4.5 and 5.0."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blender_addon.shared.formats.ply import read_ply
from blender_addon.shared.gaussians import GaussianCloud, wxyz_product, wxyz_to_matrices
from blender_addon.shared.sh import sh_basis
from blender_addon.shared.skeleton import BONE_NAMES, FACIAL_ACTIONS, JOINT_NAMES
from tests.blender.glb_reader import SkinnedGlb
from tests.blender.interpreters import BLENDERS, find_blender

pytestmark = pytest.mark.blender

FRAMES = (1, 6, 11)

Exported = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module", params=BLENDERS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("export")
    command = [find_blender(request.param), str(Path(__file__).parent / "inside_export.py"), str(folder)]
    environment = {**os.environ, "BLENDER_USER_RESOURCES": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    answer = next(line for line in done.stdout.splitlines() if line.startswith("ANSWER "))
    return folder, json.loads(answer.removeprefix("ANSWER "))


def colours_towards(cloud: GaussianCloud, directions: np.ndarray) -> np.ndarray:
    coefficients = np.concatenate([cloud.sh_dc[:, None], cloud.sh_rest], axis=1)
    return np.einsum("nk,nkc->nc", sh_basis(directions, cloud.degree), coefficients)


def test_every_gaussian_of_a_posed_avatar_keeps_its_colours_from_its_own_side(exported: Exported) -> None:
    folder, _ = exported
    rest, posed = read_ply(folder / "rest.ply").cloud, read_ply(folder / "posed.ply").cloud
    turns = wxyz_product(posed.rotations_wxyz, rest.rotations_wxyz * [1, -1, -1, -1])
    degrees = np.degrees(2 * np.arctan2(np.linalg.norm(turns[:, 1:], axis=1), np.abs(turns[:, 0])))
    assert np.ptp(degrees) > 30, "all turn alike, so one rotation for all would do"
    directions = np.random.default_rng(1).normal(size=(len(rest), 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    turned = np.einsum("nij,nj->ni", wxyz_to_matrices(turns), directions)
    assert posed.degree == 3
    np.testing.assert_allclose(colours_towards(posed, turned), colours_towards(rest, directions), atol=2e-4)


def test_a_sequence_is_one_file_per_frame_and_goes_on_only_if_asked(exported: Exported) -> None:
    folder, answer = exported[0], exported[1]["splats"]
    assert answer["files"] == ["walk_0001.ply", "walk_0005.ply", "walk_0009.ply"]
    assert answer["frame"] == [4, 0.25], "the artist's frame is another one now"
    assert answer["same_1"] and answer["same_5"] and answer["same_9"]
    first, last = (read_ply(folder / f"single_{frame}.ply").cloud.positions_m for frame in (1, 9))
    assert np.abs(first - last).max() > 0.05, "nothing moves"
    assert answer["kept"] and answer["resumed"] and answer["again"]
    assert answer["stopped"] == ["stopped_0001.spz", "stopped_0002.spz"] and answer["stopped_frame"] == 3
    assert "no frames from 9 to 1" in answer["backwards"]


def test_what_cannot_be_exported_is_said_in_one_line(exported: Exported) -> None:
    folder, answer = exported[0], exported[1]["splats"]
    assert "is hidden" in answer["hidden"] and not (folder / "hidden.ply").exists()
    assert ".sog" in answer["no_backend"] or (folder / "none.sog").is_file()
    for text in (answer["hidden"], answer["no_backend"], exported[1]["gltf"]["refused"]):
        assert text.count("\n") <= 1 and "Traceback" not in text
    assert "folder" in exported[1]["gltf"]["refused"]


def nearest(rest: np.ndarray, points: np.ndarray) -> list[np.ndarray]:
    """Vertices of the mesh that each of the file's may be: the same place at rest; seams are split in a file."""
    keys: dict[tuple[int, ...], list[int]] = {}
    for k, key in enumerate(map(tuple, np.rint(rest * 1e6).astype(int).tolist())):
        keys.setdefault(key, []).append(k)
    return [np.array(keys[key]) for key in map(tuple, np.rint(points * 1e6).astype(int).tolist())]


def test_gltf_skins_every_vertex_as_blender_does(exported: Exported) -> None:
    folder, answer = exported[0], exported[1]["gltf"]
    assert all(answer["finished"])
    file, seen = SkinnedGlb(folder / "exact.glb"), np.load(folder / "gltf.npz")
    candidates = nearest(seen["rest"], file.positions)
    assert set(np.concatenate(candidates)) == set(range(len(seen["rest"]))), "vertices are missing"
    for frame in FRAMES:
        posed, there = file.posed("Walk", (frame - 1) / answer["fps"]), seen[str(frame)]
        errors = [np.linalg.norm(there[c] - p, axis=1).min() for c, p in zip(candidates, posed, strict=True)]
        assert max(errors) < 1e-4, f"frame {frame}"
    assert np.abs(seen["1"] - seen["11"]).max() > 0.1, "nothing moves"
    assert np.abs(file.weights.sum(axis=1) - 1).max() < 1e-5


def test_gltf_has_the_face_the_bones_and_the_photos_colours(exported: Exported) -> None:
    folder, answer = exported[0], exported[1]["gltf"]
    file = SkinnedGlb(folder / "exact.glb")
    assert file.target_names == [*FACIAL_ACTIONS, "photo"] and answer["shapes"][1:] == file.target_names
    twists = [f"{bone}_twist.{side}" for bone in ("forearm", "upper_arm") for side in "LR"]
    assert answer["bones"] == sorted([*BONE_NAMES, *twists]), "a control bone is in the file, or one is missing"
    seen = np.load(folder / "gltf.npz")
    display = np.where(file.colours < 0.0031308, 12.92 * file.colours, 1.055 * file.colours ** (1 / 2.4) - 0.055)
    colours = seen["colours"]
    wanted = [colours[c] for c in nearest(seen["rest"], file.positions)]
    assert max(np.abs(w - d).max(axis=1).min() for w, d in zip(wanted, display[:, :3], strict=True)) < 0.01
    assert np.ptp(display[:, :3], axis=0).min() > 0.3, "the mesh is grey"
    assert "KHR_materials_unlit" in file.material["extensions"]
    lit = SkinnedGlb(folder / "all.glb")
    assert "extensions" not in lit.material and lit.joints.shape[1] == 4
    assert sorted(a["name"] for a in lit.tree["animations"]) == ["Photo pose", "T-pose", "Walk"]
    first, last = answer["walk"][0]
    assert lit.seconds("Walk")[0] == 0 and lit.seconds("Walk")[-1] == pytest.approx((last - first) / answer["fps"])
    assert "animations" not in SkinnedGlb(folder / "still.glb").tree


def test_an_export_leaves_the_scene_as_it_was(exported: Exported) -> None:
    answer = exported[1]["gltf"]
    assert answer["left"] and answer["frame"] == 7 and answer["action"] == "Walk" and answer["parts"] == []
    assert answer["active"] == ["someone splats"] * 2, "active, or selected, is another one"


def degrees_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[...] angles of rotations [..., 3, 3], from the sine as well, which is exact for small ones."""
    turn = np.swapaxes(a, -1, -2) @ b
    sine = np.linalg.norm(np.stack([turn[..., i, j] - turn[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))]), axis=0)
    return np.degrees(np.arctan2(sine / 2, (np.trace(turn, axis1=-2, axis2=-1) - 1) / 2))


@pytest.mark.parametrize("names", ["smplx", "mixamo"])
def test_bvh_comes_back_as_the_same_pose(exported: Exported, names: str) -> None:
    folder, answer = exported[0], exported[1]["bvh"]
    assert all(answer["finished"])
    wanted, seen = np.load(folder / "bvh_wanted.npz"), np.load(folder / f"bvh_{names}.npz")
    # Mixamo has no jaw.
    told = [k for k, joint in enumerate(JOINT_NAMES) if names == "smplx" or joint != "jaw"]
    for frame in map(str, FRAMES):
        assert degrees_between(seen[frame][told, :3, :3], wanted[frame][told, :3, :3]).max() < 0.1
        # An import begins above the origin.
        path = [(moved[frame] - moved["1"])[0, :2, 3] for moved in (seen, wanted)]
        np.testing.assert_allclose(path[0], path[1], atol=1e-4)
    assert degrees_between(wanted["1"][:, :3, :3], wanted["11"][:, :3, :3]).max() > 10, "nothing moves"


def test_bvh_is_what_blenders_own_importer_reads(exported: Exported) -> None:
    folder, answer = exported[0], exported[1]["bvh"]
    assert answer["bones"] == len(JOINT_NAMES), "control or twist bones are in the file"
    wanted, seen = np.load(folder / "bvh_wanted.npz"), np.load(folder / "bvh_blender.npz")
    for heads, frame in zip(seen["heads"], FRAMES, strict=True):
        np.testing.assert_allclose(heads, wanted[str(frame)][seen["order"], :3, 3], atol=2e-4)


def test_baked_keys_show_what_constraints_showed(exported: Exported) -> None:
    answer = exported[1]["bake"]
    assert answer["moved"] > 0.05 and answer["error"] < 1e-4
    assert answer["frame"] == 2 and answer["action"].startswith("Walk baked")
    assert set(answer["switches"]) == {0.0} and answer["curl"] == 0.0
    assert answer["coarse"] < 1e-4, "the keyed frames of a coarser bake are others"


def test_usd_has_mesh_and_gaussians_or_is_not_offered(exported: Exported) -> None:
    folder, answer = exported[0], exported[1]["usd"]
    if not answer["has_usd"]:
        assert "no USD" in answer["refused"] and not answer["left"]
        return
    importlib.import_module("pxr")
    from pxr import Gf, Usd, UsdGeom, UsdSkel

    stage = Usd.Stage.Open(str(folder / "avatar.usdc"))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    prims = {str(prim.GetTypeName()): prim for prim in stage.Traverse()}
    colours = np.array(UsdGeom.PrimvarsAPI(prims["Mesh"]).GetPrimvar("displayColor").Get())
    seen = np.load(folder / "gltf.npz")["colours"]  # the same Gaussians
    display = np.where(colours < 0.0031308, 12.92 * colours, 1.055 * colours ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(display, seen, atol=1e-3)
    shader = next(p for p in stage.Traverse() if p.GetAttribute("info:id").Get() == "UsdPreviewSurface")
    assert shader.GetAttribute("inputs:diffuseColor").HasAuthoredConnections()
    UsdSkel.BakeSkinning(UsdSkel.Root(prims["SkelRoot"]), Gf.Interval(0, 12))
    wanted = np.load(folder / "usd.npz")
    for frame in FRAMES:
        points = np.array(UsdGeom.Mesh(prims["Mesh"]).GetPointsAttr().Get(frame - 1))
        placed = np.array(UsdGeom.Xformable(prims["Mesh"]).ComputeLocalToWorldTransform(frame - 1))
        np.testing.assert_allclose(points @ placed[:3, :3] + placed[3, :3], wanted[str(frame)], atol=1e-4)
        splats = prims["ParticleField3DGaussianSplat"]
        placed = np.array(UsdGeom.Xformable(splats).ComputeLocalToWorldTransform(frame - 1))
        cloud = read_ply(folder / f"usd_{frame}.ply").cloud  # Y down
        flip = np.diag([1.0, -1.0, -1.0])
        centres = np.array(splats.GetAttribute("positions").Get(frame - 1)) @ placed[:3, :3] + placed[3, :3]
        np.testing.assert_allclose(centres, cloud.positions_m @ flip, atol=1e-5)
        turns = [[q.GetReal(), *q.GetImaginary()] for q in splats.GetAttribute("orientations").Get(frame - 1)]
        axes = placed[:3, :3].T @ wxyz_to_matrices(np.array(turns))
        assert degrees_between(axes, flip @ wxyz_to_matrices(cloud.rotations_wxyz)).max() < 0.01
    assert len(splats.GetAttribute("radiance:sphericalHarmonicsCoefficients").Get()) == len(cloud)
