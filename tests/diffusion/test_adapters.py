from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backend.context import Context
from backend.diffusion import outside, registry
from backend.diffusion.albedo import Albedo, to_display
from backend.diffusion.body_pose import NAMES, POSE_LANDMARKS, Sam3dBody, body_pose, retarget
from backend.diffusion.lift import TRELLIS_ENCODER, TRIPOSPLAT_FILES, Trellis, TripoSplat, lift_generator, lifted
from backend.diffusion.matting import BACKGROUND, FOREGROUND, UNKNOWN, ViTMatte, trimap
from backend.diffusion.parsing import HumanParser, label_of
from backend.diffusion.placement import Placement
from backend.diffusion.restoration import FRAME_PX, FaceRestorer
from backend.diffusion.surface import MoGe2, surface_estimators
from backend.errors import MODEL_MISSING, Cancelled, UserError
from backend.human.model import load_default_body
from backend.perception.labels import Label
from blender_addon.shared.skeleton import JOINT_NAMES
from tests.diffusion import stub_packages as stubs
from tests.diffusion.tiny_video import StopAfter, noise_picture, one_thread, randomised  # noqa: F401
from tests.diffusion.tiny_vision import (
    ATR,
    Shelf,
    dinov2_config,
    transformers,
    write_json,
    write_marigold,
    write_segformer,
    write_vitmatte,
)

pytestmark = pytest.mark.usefixtures("one_thread")
QUIET = Context.quiet()


@pytest.fixture
def body_joints() -> np.ndarray:
    return load_default_body().rest(np.zeros(20))[1]


def write_triposplat(folder: Path) -> None:
    for path in TRIPOSPLAT_FILES.values():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": torch.zeros(1)}, folder / path)


def write_trellis(folder: Path) -> None:
    write_json(folder / "pipeline.json", {"args": {}})
    config = transformers.Dinov2WithRegistersConfig(**dinov2_config().to_dict() | {"num_register_tokens": 4})
    encoder = transformers.Dinov2WithRegistersModel(config)
    randomised(encoder, 1).save_pretrained(folder / TRELLIS_ENCODER)


def write_moge(folder: Path) -> None:
    write_json(folder / "config.json", {"encoder": {}, "neck": {}})
    save_file({"scale": torch.ones(1)}, folder / "model.safetensors")


def write_gfpgan(folder: Path) -> None:
    save_file({"gain": torch.full((1,), -1.0)}, folder / "GFPGANv1.4.safetensors")


def write_sam3d(folder: Path) -> None:
    write_json(folder / "model_config.json", {"backbone": "dinov3_vith16plus"})
    tensors = {"head.weight": torch.ones(3, 2), "head.bias": torch.zeros(3), "backbone.weight": torch.ones(1, 1)}
    save_file(tensors | {"backbone.bias": torch.zeros(1)}, folder / "model.safetensors")


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    properties = {
        "target_names": ["shading", "albedo"],
        "albedo": {"prediction_space": "linear"},
        "shading": {"prediction_space": "linear"},
    }
    index = {"default_denoising_steps": 2, "default_processing_resolution": 64, "target_properties": properties}
    return Shelf(
        tmp_path, triposplat=write_triposplat, trellis=write_trellis, moge2=write_moge, restoration=write_gfpgan,
        sam3d_body=write_sam3d, matting=write_vitmatte, parsing=write_segformer,
        albedo=lambda to: write_marigold(to, 2, "MarigoldIntrinsicsPipeline", **index),
    )  # fmt: skip


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    stubs.install(monkeypatch, "triposplat", TripoSplatPipeline=stubs.TripoSplatPipeline)
    stubs.install(monkeypatch, "trellis.pipelines", TrellisImageTo3DPipeline=stubs.TrellisImageTo3DPipeline)
    stubs.install(monkeypatch, "moge.model.v2", MoGeModel=stubs.MoGeModel)
    stubs.install(monkeypatch, "spandrel", ModelLoader=stubs.ModelLoader)
    stubs.install(monkeypatch, "sam_3d_body", SAM3DBodyEstimator=stubs.SAM3DBodyEstimator)
    stubs.install(monkeypatch, "sam_3d_body.models.meta_arch", SAM3DBody=stubs.SAM3DBody)
    stubs.install(monkeypatch, "sam_3d_body.utils.config", get_config=lambda path: {"backbone": "dinov3_vith16plus"})
    stubs.install(monkeypatch, "mhr")
    stubs.install(monkeypatch, "dinov3.hub.backbones", dinov3_vith16plus=lambda pretrained: torch.nn.Linear(1, 1))


def square(brightness: int = 200) -> tuple[np.ndarray, np.ndarray]:
    image = np.full((40, 40, 3), brightness, np.uint8)
    mask = np.zeros((40, 40), np.float32)
    mask[10:30, 10:30] = 1
    return image, mask


# ---- the table ------------------------------------------------------------------------------------------------------


def test_the_table_names_each_addition_once_with_what_happens_without_it() -> None:
    ids = [row.model_id for row in outside.ADDITIONS]
    assert len(set(ids)) == len(ids)
    for row in outside.ADDITIONS:
        assert registry.row(row.model_id)  # it has a row of the registry
        assert row.fallback and row.install.startswith(("press Repair", "pip install", "git clone", "accept the"))


def test_doctor_sees_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "is_installed", lambda module: module == "transformers")
    table = {line.name: line for line in outside.available(lambda model_id: model_id == "clip-l")}
    assert table["CLIP"].installed and table["CLIP"].next_step == ""
    assert table["DINOv2"].next_step == "python -m backend models fetch dinov2-small"
    assert table["ViTMatte"].next_step == "python -m backend models import matting FOLDER"
    assert table["TRELLIS"].next_step.startswith("git clone") and not table["TRELLIS"].installed


@pytest.mark.parametrize(
    ("make", "module", "fallback"),
    [
        (TripoSplat, "triposplat", "TRELLIS"),
        (Trellis, "trellis", "TripoSplat"),
        (lambda shelf: MoGe2(shelf, Placement()), "moge", "the fitted body"),
        (FaceRestorer, "spandrel", "the photo's resolution"),
        (Sam3dBody, "sam_3d_body", "mediapipe"),
    ],
)
def test_a_missing_package_is_one_line_with_install_and_fallback(
    make: Callable[[Shelf], Any], module: str, fallback: str, shelf: Shelf
) -> None:
    if outside.is_installed(module):
        pytest.skip(f"{module} is installed here")
    with pytest.raises(UserError, match=fallback) as caught:
        make(shelf)
    assert (caught.value.code, caught.value.kind) == (MODEL_MISSING, "NO_MODEL")
    assert "pip install" in caught.value.message or "git clone" in caught.value.message


def test_a_broken_package_is_told_from_a_missing_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "spandrel.py").write_text("import a_package_that_nobody_has\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="is installed, but No module named 'a_package_that_nobody_has'"):
        outside.require("restoration")
    sys.modules.pop("spandrel", None)


@pytest.mark.parametrize(
    "habit",
    [
        lambda path: torch.load(path),
        lambda path: torch.jit.load(path),
        lambda path: torch.hub.load("somebody/something", "model"),
        lambda path: torch.hub.load_state_dict_from_url("https://example.org/a.pth"),
        lambda path: np.load(path, allow_pickle=True),
    ],
)
def test_packages_cannot_fall_back_into_habits(habit: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"\x80\x04.")
    before = (torch.load, torch.jit.load, torch.hub.load, np.load)
    with pytest.raises(UserError, match="safetensors") as caught, outside.guarded("It"):
        habit(path)
    assert caught.value.kind == "BAD_MODEL"
    assert (torch.load, torch.jit.load, torch.hub.load, np.load) == before


def test_plain_arrays_still_load_under_guard(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    with outside.guarded("It"):
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), [0, 1, 2])


# ---- lift -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("make", [TripoSplat, Trellis])
def test_lifting_gives_gaussians_in_our_frame(make: Any, shelf: Shelf) -> None:
    generator = make(shelf, "cpu")
    found = generator.lift(*square(), QUIET)
    np.testing.assert_allclose(np.ptp(found.positions, axis=0), [0.5, 1, 0.5], atol=1e-6)  # twice as high: y is up
    np.testing.assert_allclose(found.positions.max(0) + found.positions.min(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.scales, 0.02 / 0.2, atol=1e-6)
    np.testing.assert_allclose(found.opacities, 0.5)
    assert generator.sources[0].licence == "random"
    darker = generator.lift(*square(100), QUIET)
    assert np.abs(darker.colours - found.colours).max() > 1e-4
    again = generator.lift(*square(), QUIET)
    np.testing.assert_array_equal(again.colours, found.colours)


def test_lifted_gaussians_turn_with_their_points() -> None:
    """A disc whose thin axis is z (up) has it along y afterwards."""
    found = lifted(
        torch.tensor([[0.0, -0.5, 0], [0, 0.5, 0.2]]),
        torch.tensor([[0.2, 0.2, 0.01]] * 2),
        torch.tensor([[2.0, 0, 0, 0]] * 2),
        torch.full((2, 1), 0.3),
        torch.zeros(2, 1, 3),
    )
    w, x, y, z = found.rotations_wxyz[0]
    thin = np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])
    np.testing.assert_allclose(np.abs(thin), [0, 1, 0], atol=1e-6)
    assert found.positions[0, 2] == pytest.approx(0.5)  # what was in front (-y) looks towards +z
    np.testing.assert_allclose(found.colours, 0.5)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("make", [TripoSplat, Trellis])
def test_lifting_stops_within_one_step(make: Any, shelf: Shelf) -> None:
    generator = make(shelf, "cpu")
    sink = StopAfter(2) if make is TripoSplat else StopAfter(0)
    sink.event.set() if make is Trellis else None
    with pytest.raises(Cancelled):
        generator.lift(*square(), sink.context)


@pytest.mark.usefixtures("packages")
def test_trellis_gets_its_encoder_without_the_hub(shelf: Shelf) -> None:
    generator = Trellis(shelf, "cpu")
    encoder: Any = generator._pipeline.models["image_cond_model"]
    pixels = torch.rand(1, 3, 56, 56)
    tokens = encoder(pixels, is_training=True)["x_prenorm"]
    assert tokens.shape == (1, 1 + 4 + 16, 16)
    normed = encoder.model(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(encoder.model.layernorm(tokens), normed)


@pytest.mark.usefixtures("packages")
def test_the_first_installed_lifter_is_taken(shelf: Shelf, tmp_path: Path) -> None:
    assert isinstance(lift_generator(shelf, "cpu"), TripoSplat)
    only = Shelf(tmp_path / "b", trellis=write_trellis)
    assert isinstance(lift_generator(only, "cpu"), Trellis)
    with pytest.raises(UserError, match="triposplat is not installed.* / .*trellis is not installed"):
        lift_generator(Shelf(tmp_path / "c"), "cpu")


@pytest.mark.usefixtures("packages")
def test_a_missing_file_of_triposplat_is_named(shelf: Shelf) -> None:
    (shelf.folder("triposplat") / TRIPOSPLAT_FILES["rmbg_path"]).unlink()
    with pytest.raises(UserError, match="birefnet.safetensors is not in the model's folder"):
        TripoSplat(shelf, "cpu")


# ---- surface, matting, parsing, restoration, albedo -----------------------------------------------------------------


@pytest.mark.usefixtures("packages")
def test_moge_answers_for_normals_and_depth(shelf: Shelf) -> None:
    estimator = MoGe2(shelf, Placement())
    image = np.zeros((6, 8, 3), np.uint8)
    image[:, 4:] = 255
    found = estimator.estimate(image, QUIET)
    assert found.normals is not None and found.disparity is not None
    np.testing.assert_array_equal(found.normals[1:], np.broadcast_to([0, 0, -1], (5, 8, 3)))
    np.testing.assert_array_equal(found.disparity[0], 0)  # the sky
    assert (found.disparity[1:, :4] == 1).all() and (found.disparity[1:, 4:] == 0).all()  # dark is near


@pytest.mark.usefixtures("packages")
def test_moge_comes_before_the_two_that_it_replaces(shelf: Shelf, tmp_path: Path) -> None:
    both = Shelf(tmp_path / "both", moge2=write_moge, marigold_normals=write_marigold)
    assert [type(found) for found in surface_estimators(both, QUIET)] == [MoGe2]


@pytest.mark.usefixtures("packages")
def test_moges_own_pickle_is_refused(shelf: Shelf) -> None:
    folder = shelf.folder("moge2")
    (folder / "model.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="only .safetensors"):
        MoGe2(shelf, Placement())
    (folder / "model.pt").unlink()
    save_file({"other": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="lack scale"):
        MoGe2(shelf, Placement())


def test_matting_decides_only_where_the_mask_is_unsure(shelf: Shelf) -> None:
    network = ViTMatte(shelf, Placement())
    mask = np.zeros((64, 80), np.float32)
    mask[16:48, 20:60] = 1
    image, other = noise_picture(80, 64, 0), noise_picture(80, 64, 1)
    first, again, changed = (network.alpha(picture, mask, QUIET) for picture in (image, image, other))
    known = trimap(mask)
    assert first.shape == (64, 80) and first.dtype == np.float32 and (first.min(), first.max()) == (0, 1)
    np.testing.assert_array_equal(first[known == FOREGROUND], 1)
    np.testing.assert_array_equal(first[known == BACKGROUND], 0)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - changed)[known == UNKNOWN].max() > 1e-3


def test_the_band_of_a_trimap_is_as_wide_as_asked() -> None:
    mask = np.zeros((60, 60), np.float32)
    mask[20:40, 20:40] = 1
    row = trimap(mask, 3)[30]
    assert [int((row == value).sum()) for value in (FOREGROUND, UNKNOWN, BACKGROUND)] == [14, 12, 34]
    mask[:] = 0.5
    assert (trimap(mask, 3) == UNKNOWN).all()


def test_class_names_become_our_labels() -> None:
    wanted = "NONE OTHER HAIR OTHER UPPER LOWER LOWER UPPER OTHER SHOES SHOES SKIN SKIN SKIN SKIN SKIN OTHER OTHER"
    assert [label_of(name).name for name in ATR] == wanted.split()
    sapiens = {
        "Apparel": "UPPER", "Face_Neck": "SKIN", "Hair": "HAIR", "Left_Foot": "SKIN", "Left_Lower_Arm": "SKIN",
        "Right_Upper_Leg": "SKIN", "Left_Upper_Arm": "SKIN", "Upper_Clothing": "UPPER", "Lower_Clothing": "LOWER",
        "Left_Shoe": "SHOES", "Left_Sock": "OTHER", "Torso": "SKIN", "Lower_Lip": "SKIN", "Eyeglass": "OTHER",
        "Tongue": "SKIN", "Left_Hand": "SKIN", "Background": "NONE",
    }  # fmt: skip
    assert {name: label_of(name).name for name in sapiens} == sapiens


def test_parsing_labels_every_pixel(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = HumanParser(shelf, Placement())
    image = noise_picture(50, 40)
    labels = parser.parse(image, QUIET)
    assert labels.shape == (40, 50) and labels.dtype == np.uint8 and labels.max() <= max(Label)
    np.testing.assert_array_equal(labels, parser.parse(image, QUIET))
    mask = np.zeros((40, 50), np.float32)
    mask[:, :25] = 1
    assert (parser.parse(image, QUIET, mask)[:, 25:] == Label.NONE).all()
    scores = torch.zeros(1, 18, 4, 4)
    scores[0, ATR.index("Pants"), 2:], scores[0, ATR.index("Hair"), :2] = 9, 9
    monkeypatch.setattr(parser, "_model", lambda pixel_values: type("Out", (), {"logits": scores})())
    labels = parser.parse(image, QUIET)
    assert (labels[:14] == Label.HAIR).all() and (labels[26:] == Label.LOWER).all()


def test_a_changed_picture_changes_the_parsers_scores(shelf: Shelf) -> None:
    parser: Any = HumanParser(shelf, Placement())
    one, other = (
        parser._model(pixel_values=torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(s))).logits
        for s in (0, 1)
    )
    assert (one - other).abs().max() > 1e-3


def test_another_kind_of_parser_is_refused(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, parsing=lambda to: write_json(to / "config.json", {"model_type": "mask2former"}))
    with pytest.raises(UserError, match="not 'mask2former'"):
        HumanParser(shelf, Placement())


@pytest.mark.usefixtures("packages")
def test_a_face_is_restored_where_it_is(shelf: Shelf) -> None:
    """The stub turns colours round; only the face may show it, and strength says how far."""
    restorer = FaceRestorer(shelf)
    image = np.full((400, 300, 3), 60, np.uint8)
    landmarks = FRAME_PX * 0.25 + [80, 120]
    restored = restorer.restore(image, landmarks, 1.0, QUIET)
    assert restored.shape == image.shape and restored.dtype == np.uint8
    middle = landmarks.mean(0).astype(int)
    assert (restored[middle[1], middle[0]] == 195).all()
    np.testing.assert_array_equal(restored[:, 250:], image[:, 250:])
    np.testing.assert_array_equal(restored[300:], image[300:])
    np.testing.assert_array_equal(restorer.restore(image, landmarks, 0.0, QUIET), image)


@pytest.mark.usefixtures("packages")
def test_what_is_no_face_network_is_refused(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stubs.ModelLoader, "purpose", "SR")
    with pytest.raises(UserError, match="no face network"):
        FaceRestorer(shelf)
    (shelf.folder("restoration") / "GFPGANv1.4.safetensors").rename(shelf.folder("restoration") / "GFPGANv1.4.pth")
    with pytest.raises(UserError, match="only .safetensors"):
        FaceRestorer(shelf)


def test_albedo_of_the_named_target_in_display_colours(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Albedo(shelf, Placement())
    image, other = noise_picture(48, 40, 0), noise_picture(48, 40, 1)
    first, again, changed = (network.albedo(picture, QUIET) for picture in (image, image, other))
    assert first.shape == image.shape and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != changed).any() and (first != network.albedo(image, Context.quiet(1))).any()
    targets = np.stack([np.zeros((2, 2, 3)), np.full((2, 2, 3), 0.2140)]).astype(np.float32)
    monkeypatch.setattr("backend.diffusion.albedo.run_marigold", lambda *_: targets)
    np.testing.assert_allclose(network.albedo(image, QUIET), 128, atol=1)  # linear 0.214 is half in sRGB


def test_albedo_stops_within_one_step(shelf: Shelf) -> None:
    with pytest.raises(Cancelled):
        Albedo(shelf, Placement(), steps=50).albedo(noise_picture(32, 32), StopAfter(2).context)


def test_display_colours_meet_the_standard() -> None:
    np.testing.assert_allclose(to_display(np.array([0, 0.0031308, 0.5, 1])), [0, 0.04045, 0.73536, 1], atol=1e-4)


# ---- body pose ------------------------------------------------------------------------------------------------------


def keypoints_of(joints: np.ndarray) -> np.ndarray:
    """Keypoints [70, 3] that a body with these joints would show; points of the feet are made up around the joint."""
    at = dict(zip(JOINT_NAMES, joints, strict=True))
    points = {name: at.get(name, np.zeros(3)) for name in NAMES}
    points |= {"left_eye": at["left_eye_smplhf"], "right_eye": at["right_eye_smplhf"]}
    for side in ("left", "right"):
        heel, ball = at[f"{side}_ankle"], at[f"{side}_foot"]
        tips = heel + (ball - heel) / 0.7
        points |= {f"{side}_heel": heel, f"{side}_big_toe": tips, f"{side}_small_toe": tips}
    return np.array([points[name] for name in NAMES])


def test_keypoints_come_back_as_the_joints_that_made_them(body_joints: np.ndarray) -> None:
    joints, direct = retarget(keypoints_of(body_joints), body_joints)
    np.testing.assert_allclose(joints, body_joints, atol=1e-6)
    missing = {JOINT_NAMES[number] for number in np.flatnonzero(~direct)}
    assert missing == {
        "pelvis", "spine1", "spine2", "spine3", "left_collar", "right_collar", "head", "jaw", "left_foot", "right_foot",
    }  # fmt: skip


def test_retargeting_follows_turn_size_and_place(body_joints: np.ndarray) -> None:
    angle = 0.7
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]) @ np.diag(
        [1, -1, -1]
    )
    moved = 1.1 * body_joints @ turn.T + [0.3, -0.2, 3]
    joints, _ = retarget(keypoints_of(moved), body_joints)
    np.testing.assert_allclose(joints, moved, atol=1e-6)


@pytest.mark.usefixtures("packages")
def test_sam3d_body_gives_joints_in_the_camera(shelf: Shelf, body_joints: np.ndarray) -> None:
    keypoints = keypoints_of(body_joints * [1, -1, -1])
    stubs.SAM3DBodyEstimator.told = {
        "pred_keypoints_3d": keypoints, "pred_keypoints_2d": keypoints[:, :2] * 100 + 200,
        "pred_cam_t": np.array([0.1, 1.0, 4.0]), "focal_length": np.float32(900),
    }  # fmt: skip
    network = Sam3dBody(shelf, "cpu")
    image, mask = square()
    found = network.estimate(image, mask, body_joints, QUIET)
    assert found is not None and found.focal_px == 900
    np.testing.assert_allclose(found.joints_m, body_joints * [1, -1, -1] + [0.1, 1, 4], atol=1e-5)
    hips = (found.landmarks_m[23] + found.landmarks_m[24]) / 2
    np.testing.assert_allclose(hips, 0, atol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(~found.present), [9, 10])
    np.testing.assert_allclose(found.landmarks_px[25], keypoints[NAMES.index("left_knee"), :2] * 100 + 200, atol=1e-4)
    np.testing.assert_array_equal(network._estimator.calls[0]["bboxes"], [[10, 10, 30, 30]])
    assert network.estimate(image, np.zeros_like(mask), body_joints, QUIET) is None
    stubs.SAM3DBodyEstimator.told = {}
    assert network.estimate(image, mask, body_joints, QUIET, np.eye(3)) is None
    assert network._estimator.calls[-1]["cam_int"].shape == (1, 3, 3)


@pytest.mark.usefixtures("packages")
def test_sam3d_bodys_archives_stay_closed(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shelf.folder("sam3d-body")
    (folder / "model.ckpt").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="only .safetensors"):
        Sam3dBody(shelf, "cpu")
    (folder / "model.ckpt").unlink()
    for module in ("mhr", "dinov3"):
        with monkeypatch.context() as patch:
            patch.setattr(outside, "is_installed", lambda name, absent=module: name != absent)
            with pytest.raises(UserError, match=f"(?i)facebookresearch/{module}"):
                Sam3dBody(shelf, "cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.ckpt is a pickle"):
        Sam3dBody(shelf, "cpu")


def test_every_landmark_of_mediapipe_has_its_keypoint_or_none(body_joints: np.ndarray) -> None:
    assert len(NAMES) == 70 and len(set(NAMES)) == 70 and len(POSE_LANDMARKS) == 33
    assert {name for name in POSE_LANDMARKS if name != "-"} <= set(NAMES)
    told = {"pred_keypoints_3d": keypoints_of(body_joints), "pred_keypoints_2d": np.zeros((70, 2))}
    found = body_pose(told | {"pred_cam_t": np.zeros(3), "focal_length": [500.0]}, body_joints)
    assert found.landmarks_m.shape == (33, 3) and found.present.sum() == 31
