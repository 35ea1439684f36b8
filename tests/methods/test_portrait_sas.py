"""The ways to a portrait with image models, on tiny models of the published layouts, through the real loaders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.benches import portrait as bench
from backend.benches.measuring import Options
from backend.context import Context
from backend.diffusion import edit
from backend.diffusion.chosen import image_editor
from backend.diffusion.guidance import SAS_STEPS, Guidance
from backend.diffusion.style_models import Parts, load_models
from backend.errors import UserError
from backend.human.bust import Bust
from backend.methods import portrait_sas
from backend.methods.portrait_sas import Drawn, Scale, edit_stages, lacking, sas_stages, style_words
from backend.perception.people import Person
from backend.perception.photo import Photo
from backend.pipeline import Run, check_chain, run
from backend.splats.avatar import build_avatar
from backend.splats.bound import BoundSplats, Kind
from backend.splats.deform import pose_avatar
from backend.splats.head_start import head_start
from backend.splats.stylise import GROWTH, StyliseSettings
from blender_addon.shared.avatar import read_bundle, write_bundle
from blender_addon.shared.methods import PortraitRequest
from blender_addon.shared.skeleton import JOINT_NAMES
from tests.diffusion.tiny import TinyFactory
from tests.diffusion.tiny_video import one_thread, write_inpaint
from tests.splats.head_stand_in import bust

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread

TINY = Scale(
    StyliseSettings(
        portrait_px=64,
        around_px=64,
        coarse_px=32,
        portrait=Guidance(scale=7.5, steps=SAS_STEPS),
        grow=dataclasses.replace(GROWTH, budget=400, every=3),
    ),
    steps={"fast": 6, "balanced": 6, "best": 6},
    face_steps={"fast": 0, "balanced": 3, "best": 3},
    gaussians=300,
    style_images=2,
    style_steps=2,
)
ALL = ("sd15", "control-mediapipe-face", "ip-adapter-plus-face", "mvdream")


class Shelf(TinyFactory):
    """Tiny models, of which some are there."""

    def __init__(self, root: Path, there: tuple[str, ...]) -> None:
        super().__init__(root)
        self.there = there

    def installed(self, model_id: str) -> bool:
        return model_id in self.there


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFIGY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def small_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models are shown views as small as the loop draws them, not the 256 px of the real one."""

    def load(*given: Any) -> Any:
        loaded = load_models(*given)
        if loaded.around is not None:
            loaded.around.size_px = 64
        return loaded

    monkeypatch.setattr(portrait_sas, "load_models", load)


def someone(size_px: int = 96) -> Person:
    """A picture with landmarks; nothing else of it is read here."""
    rng = np.random.default_rng(0)
    points = np.c_[rng.uniform(30, 66, (478, 2)), np.zeros(478)].astype(np.float32)
    image = rng.integers(0, 255, (size_px, size_px, 3), np.uint8)
    nothing = np.zeros((33, 3), np.float32)
    return Person(
        image, np.ones((size_px, size_px), np.float32), np.zeros((size_px, size_px), np.uint8), nothing[:, :2],
        nothing[:, 0], nothing[:, 0], nothing, points, nothing[:0, :2], nothing[:0, :2], nothing[:0], nothing[:0], (),
    )  # fmt: skip


def portrait(
    root: Path, tmp_path: Path, there: tuple[str, ...] = ALL, request: PortraitRequest | None = None, seed: int = 0
) -> Run:
    request = request or PortraitRequest(style="golden statue")
    given: Mapping[str, Any] = {"person": someone(), "bust": bust(), "request": request, "folder": tmp_path}
    stages = sas_stages(request, Shelf(root, there), TINY)
    (tmp_path / "checkpoints").mkdir(parents=True, exist_ok=True)
    return run(stages, given, Context.quiet(seed), tmp_path / "checkpoints")


def test_all_models_together_make_a_bound_portrait(root: Path, tmp_path: Path) -> None:
    made = portrait(root, tmp_path)
    styled, by = made.values["styled"], made.values["made_by"]
    own: Bust = bust()
    assert isinstance(styled, BoundSplats) and int(styled.triangles.max()) < len(own.body.triangles)
    assert {Kind.SKIN, Kind.HAIR, Kind.EYE, Kind.MOUTH} <= {Kind(k) for k in np.unique(styled.kind)}
    assert np.isfinite(styled.colours).all() and np.isfinite(styled.offsets_m).all()
    assert [line.split(" (")[0] for line in by] == list(ALL) and not made.warnings
    assert made.values["drawn"].steps == 6
    assert [record.name for record in made.records if record.seconds > 0] == [
        "Read the style and the face", "Load the image models", "Make pictures of the style", "Draw the portrait",
        "Draw the face", "Bind the portrait",
    ]  # fmt: skip


def test_the_bundle_blinks_speaks_and_turns(root: Path, tmp_path: Path) -> None:
    own, styled = bust(), portrait(root, tmp_path, ("sd15",)).values["styled"]
    (tmp_path / "result").mkdir()
    write_bundle(tmp_path / "result", *build_avatar(own.body, own.personal, np.zeros(20), own.vertices_m, styled))
    cloud, avatar = read_bundle(tmp_path / "result")
    assert len(cloud) == len(styled)
    turned = np.zeros((55, 3))
    turned[JOINT_NAMES.index("head"), 1] = 0.5
    for pose, actions, least_m in (
        (turned, {}, 0.02),
        (np.zeros((55, 3)), {"jawOpen": 1.0}, 0.01),
        (np.zeros((55, 3)), {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}, 0.003),
    ):
        moved = pose_avatar(cloud, avatar, pose, actions=actions)
        assert np.linalg.norm(moved.positions_m - cloud.positions_m, axis=1).max() > least_m


def test_what_is_not_installed_is_left_out_and_told(root: Path, tmp_path: Path) -> None:
    made = portrait(root, tmp_path, ("sd15",))
    assert isinstance(made.values["styled"], BoundSplats)
    text = " ".join(made.warnings)
    assert all(name in text for name in ("mvdream", "control-mediapipe-face", "ip-adapter-plus-face"))
    assert [line.split(" (")[0] for line in made.values["made_by"]] == ["sd15"]


def test_a_killed_job_resumes_and_a_style_is_made_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = portrait(root, tmp_path)
    (tmp_path / "checkpoints" / "05.npz").unlink()
    calls: list[str] = []
    monkeypatch.setattr(portrait_sas, "style_statistics", lambda *_, **__: calls.append("style"))
    again = portrait(root, tmp_path)
    assert calls == [] and [r.resumed for r in again.records] == [True, False, True, True, False, False]
    drawn: Drawn = first.values["drawn"]
    assert np.array_equal(drawn.cloud.positions_m, again.values["drawn"].cloud.positions_m)
    assert np.array_equal(first.values["styled"].offsets_m, again.values["styled"].offsets_m)


def test_the_styles_pictures_are_remembered_and_a_style_picture_replaces_them(root: Path, tmp_path: Path) -> None:
    from PIL import Image

    from backend.diffusion import style_statistics as module

    one = portrait(root, tmp_path / "a", ("sd15",))
    files = list(module.default_cache().glob("*.npz"))
    assert len(files) == 1
    two = portrait(root, tmp_path / "b", ("sd15",))
    assert np.array_equal(one.values["style"][0], two.values["style"][0])
    assert list(module.default_cache().glob("*.npz")) == files
    (tmp_path / "c").mkdir()
    Image.new("RGB", (80, 64), (200, 30, 30)).save(tmp_path / "c" / "style.png")
    pictured = PortraitRequest(style="golden statue", style_image="style.png")
    three = portrait(root, tmp_path / "c", ("sd15",), pictured)
    assert not np.allclose(one.values["style"][0], three.values["style"][0])
    gentle = portrait(root, tmp_path / "e", ("sd15",), PortraitRequest(style="golden statue", strength=0.5))
    assert 0 < np.linalg.norm(gentle.values["style"][0] - one.values["style"][0]) and not gentle.records[2].resumed
    other = portrait(root, tmp_path / "d", ("sd15",), PortraitRequest(style="clay"))
    assert len(list(module.default_cache().glob("*.npz"))) == 2
    assert not np.allclose(one.values["style"][0], other.values["style"][0])


def test_the_face_adapter_that_is_installed_is_taken(root: Path) -> None:
    def adapter(*there: str) -> str:
        return Parts.of(Shelf(root, there)).adapter

    assert adapter("sd15") == "none" and adapter("ip-adapter-plus-face") == "plus-face"
    assert adapter("ip-adapter-faceid", "ip-adapter-plus-face") == "plus-face"  # without InsightFace's recogniser
    assert adapter("ip-adapter-faceid", "ip-adapter-plus-face", "insightface-pack") == "faceid"


def test_words_come_from_the_preset_or_the_artist() -> None:
    prompt, negative = style_words(PortraitRequest(style="Golden Statue"))
    assert "gold" in prompt and negative
    prompt, negative = style_words(PortraitRequest(style="a green orc", negative="hats"))
    assert "a green orc" in prompt and negative == "hats"


def test_the_bench_measures_every_part(root: Path, tmp_path: Path) -> None:
    """What `bench portrait_3000` does on a GPU with full-size networks, here with tiny ones."""
    parts = Parts.of(Shelf(root, ALL))
    loaded = load_models(Shelf(root, ALL), parts, "plus-face", Context.quiet())
    assert loaded.around is not None and not loaded.recordable
    models = bench.Models(loaded.portrait, loaded.around)
    vertices, triangles, landmarks = bench.head()
    start = head_start(vertices, triangles, count=300)
    teachers = bench.teachers_of(models, "cpu", landmarks, recorded=True)
    settings, quiet = dataclasses.replace(TINY.stylise, iterations=2), Context.quiet()
    models.around.size_px = 64  # tiny ones are shown as little as the loop draws
    seconds, cloud = bench.loop_s(start, teachers, settings, quiet)
    runs = bench.parts(models, teachers, cloud, settings, "cpu")
    assert list(runs) == ["unet", "mvdream", "controlnet", "vae_single", "vae_four", "drawing", "adam"]
    rows = bench.part_rows(runs, 1e3 * seconds / 2, 1, "cpu")
    context = dataclasses.replace(quiet, scratch=tmp_path)
    rows += [bench.style_row(models, "cpu", context, 64, 1, 2), bench.face_row(cloud, teachers, settings, quiet, 2)]
    assert all(row.value is not None for row in rows) and len(rows) == 10
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="needs a CUDA device"):
            bench.portrait_3000(Options())


def test_landmarks_have_the_pupils_too() -> None:
    _, landmarks = portrait_sas.head_of(bust())
    right, left = landmarks[468], landmarks[473]
    assert landmarks.shape == (478, 3) and np.isfinite(landmarks).all(1).sum() == 470
    assert right[0] < 0 < left[0] and np.allclose(right * [-1, 1, 1], left, atol=0.02)
    for pupil, corners in ((right, (33, 133)), (left, (362, 263))):  # between the corners of the eye
        low, high = np.sort(landmarks[list(corners), 0])
        assert low < pupil[0] < high and abs(pupil[1] - landmarks[list(corners), 1].mean()) < 0.05


def test_what_a_way_lacks(root: Path) -> None:
    def of(way: Any, *there: str) -> tuple[str, ...]:
        return lacking(way, Shelf(root, there))  # pyright: ignore[reportArgumentType]

    assert of("sas") == ("sd15",) and of("sas", "sd15") == ()
    assert of("edit") == ("flux2-klein",) and of("edit", "sd15-inpaint") == () and of("edit", "flux2-klein") == ()


class Editors(TinyFactory):
    """Only the small editor is there."""

    def folder(self, model_id: str) -> Path:
        from backend.errors import MODEL_MISSING, UserError

        if model_id != "sd15-inpaint":
            raise UserError(f"{model_id} is not installed", MODEL_MISSING, "NO_MODEL")
        path = self.root / model_id
        return path if path.is_dir() else write_inpaint(path)


def test_the_photo_can_be_restyled_first(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(edit.INPAINT, steps=2, multiple=8, smallest_px=64, area_px=96 * 96)
    monkeypatch.setattr(edit, "INPAINT", small)
    shelf = Editors(tmp_path)

    def tiny(models: Any, context: Context) -> Any:
        made = image_editor(models, context)
        made.settings = small
        return made

    monkeypatch.setattr("backend.diffusion.chosen.image_editor", tiny)
    picture = np.random.default_rng(0).integers(0, 255, (72, 64, 3), np.uint8)
    photo = Photo(picture, None, (64, 72), "", Path("input.png"), "png")
    stages = edit_stages(PortraitRequest(style="clay", way="edit"), shelf)  # pyright: ignore[reportArgumentType]
    check_chain(stages, ("photo", "request", "models", "folder"))
    made = run(stages, {"photo": photo}, Context.quiet())
    assert made.values["edited"].image.shape == picture.shape
    assert not np.array_equal(made.values["edited"].image, picture) and len(made.values["made_by"]) == 1
    assert torch.get_num_threads() == 1
