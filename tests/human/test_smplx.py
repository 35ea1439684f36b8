"""A user's SMPL-X file: ours in SMPL-X's layout through the real `smplx` package, and files that must be refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import smplx
import torch

from backend.errors import UserError
from backend.human import lbs
from backend.human.model import BodyModel, load_default_body, load_smplx
from blender_addon.shared.skeleton import PARENTS


def smplx_arrays(body: BodyModel) -> dict[str, np.ndarray]:
    """The default body in SMPL-X's layout, float32: 300 shape and 100 expression components."""
    count = len(body.template_m)
    dirs = np.zeros((count, 3, 400), np.float32)
    dirs[..., :20] = body.shape_dirs_m
    dirs[..., 300:352] = body.action_dirs_m
    return {
        "v_template": body.template_m,
        "f": body.triangles.astype(np.uint32),
        "weights": body.skin_weights,
        "posedirs": np.zeros((count, 3, 486), np.float32),
        "shapedirs": dirs,
        "J_regressor": body.joint_regressor.toarray(),
        "kintree_table": np.stack([np.where(PARENTS < 0, 2**32 - 1, PARENTS), np.arange(55)]),
        "hands_componentsl": np.eye(45, dtype=np.float32),
        "hands_componentsr": np.eye(45, dtype=np.float32),
        "hands_meanl": np.zeros(45, np.float32),
        "hands_meanr": np.zeros(45, np.float32),
        "lmk_faces_idx": np.zeros(51, np.int64),
        "lmk_bary_coords": np.full((51, 3), 1 / 3, np.float32),
    }


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return load_default_body()


@pytest.fixture(scope="module")
def model_file(body: BodyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("smplx") / "SMPLX_NEUTRAL.npz"
    np.savez(file, **smplx_arrays(body))
    return file


def test_smplx_package_and_own_skinning_agree(body: BodyModel, model_file: Path) -> None:
    model = smplx.create(
        str(model_file), model_type="smplx", use_pca=False, flat_hand_mean=True, num_betas=20, num_expression_coeffs=52
    )
    for seed in range(3):
        rng = np.random.default_rng(seed)
        betas, actions = rng.standard_normal(20), rng.uniform(0, 1, 52)
        pose, translation = 0.4 * rng.standard_normal((55, 3)), rng.standard_normal(3)
        part = {
            "global_orient": pose[:1],
            "body_pose": pose[1:22],
            "jaw_pose": pose[22:23],
            "leye_pose": pose[23:24],
            "reye_pose": pose[24:25],
            "left_hand_pose": pose[25:40],
            "right_hand_pose": pose[40:55],
            "betas": betas,
            "expression": actions,
            "transl": translation,
        }
        tensors = {key: torch.tensor(value.reshape(1, -1), dtype=torch.float32) for key, value in part.items()}
        with torch.no_grad():
            theirs = model(**tensors).vertices[0].numpy()
        # The package moves the joints with the expression, so ours are taken from the expressive vertices here.
        vertices = body.rest(betas)[0] + body.action_dirs_m @ actions.astype(np.float32)
        transforms = lbs.vertex_transforms(body.joints(vertices), pose, body.skin_weights, translation)
        assert np.abs(theirs - lbs.apply_transforms(transforms, vertices)).max() < 1e-5


def test_user_file_becomes_a_body(body: BodyModel, model_file: Path) -> None:
    """Loaded as a user's model, the default body is the same body again, with landmarks carried over to it."""
    user = load_smplx(model_file)
    assert user.name == "SMPL-X (user)" and not user.has_actions and not user.action_dirs_m.any()
    betas = np.random.default_rng(0).standard_normal(20)
    ours, theirs = body.rest(betas), user.rest(betas)
    shift = (theirs[0] - ours[0]).mean(0)  # a user's body is put on the floor with its ankles over the origin
    assert np.abs(shift).max() < 0.01
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a + shift - b).max() < 1e-4
    for rows in ("pose_keypoints", "hand_keypoints", "face_landmarks"):
        gap = getattr(user, rows) @ user.template_m - getattr(body, rows) @ body.template_m
        assert np.median(np.linalg.norm(gap, axis=1)) < 0.01, rows
        assert np.linalg.norm(gap, axis=1).max() < 0.06, rows
    assert user.skin_weights.sum(1) == pytest.approx(1.0, abs=1e-6)


def test_bad_files_are_refused_in_one_line(body: BodyModel, tmp_path: Path) -> None:
    pickled = tmp_path / "SMPLX_NEUTRAL.pkl"
    pickled.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    objects = tmp_path / "objects.npz"
    np.savez(objects, **{**smplx_arrays(body), "weights": np.array([{}], object)})
    short = tmp_path / "short.npz"
    np.savez(short, v_template=body.template_m)
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 nothing")
    expected = {
        pickled: ".pkl",
        objects: "plain arrays",
        short: "lacks",
        broken: "plain arrays",
        tmp_path / "no.npz": "no SMPL",
    }
    for path, words in expected.items():
        with pytest.raises(UserError, match=words) as caught:
            load_smplx(path)
        assert "\n" not in caught.value.message and caught.value.code in (2, 3)
