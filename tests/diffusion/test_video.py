"""Wan-Animate and VACE on tiny models: frames as many as poses, every condition counts, segments hang together."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from backend.context import Context
from backend.diffusion import video
from backend.diffusion.interfaces import PoseTrack, Source
from backend.diffusion.placement import Placement
from backend.errors import Cancelled, UserError
from tests.diffusion.tiny_video import StopAfter, noise_picture, one_thread, write_vace, write_wan_animate

SOURCE = Source("tiny", "", "CC0-1.0", True)
ANIMATE = video.VideoSettings(steps=2, guidance=1.0, segment=17, overlap=1, area_px=32 * 32, prompt_tokens=16)
VACE = video.VideoSettings(steps=2, guidance=2.0, segment=9, overlap=5, area_px=32 * 32, prompt_tokens=16)
REFERENCE = noise_picture(24, 40)
pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread

Generator = video.WanAnimate | video.WanVACE


def track(frames: int, seed: int = 0, size: tuple[int, int] = (32, 32)) -> PoseTrack:
    """Points that wander about in the middle of the picture."""
    random = np.random.default_rng(seed)

    def points(*shape: int) -> np.ndarray:
        return random.uniform(0.1, 0.9, (frames, *shape, 2)).astype(np.float32) * np.array(size, np.float32)

    return PoseTrack(points(55), np.ones((frames, 55), np.float32), points(68), points(2, 21), *size, 16.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("video")
    return {"animate": write_wan_animate(base / "animate"), "vace": write_vace(base / "vace")}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Generator]:
    prompts, quiet = folders["vace"].parent / "prompts", Context.quiet()
    return {
        "animate": video.WanAnimate(folders["animate"], SOURCE, Placement(), quiet, ANIMATE, prompts),
        "vace": video.WanVACE(folders["vace"], SOURCE, Placement(), quiet, VACE, prompts),
    }


BOTH = pytest.mark.parametrize("name", ["animate", "vace"])


@BOTH
@pytest.mark.parametrize("count", [1, 6, 24])
def test_a_frame_for_every_pose(models: dict[str, Generator], name: str, count: int) -> None:
    frames = models[name].generate(REFERENCE, track(count), "a person", Context.quiet())
    assert frames.shape == (count, 32, 32, 3) and frames.dtype == np.uint8


@BOTH
def test_same_seed_same_video_and_every_condition_counts(models: dict[str, Generator], name: str) -> None:
    model, context, poses = models[name], Context.quiet(), track(6)
    first = model.generate(REFERENCE, poses, "a person", context)
    assert np.array_equal(first, model.generate(REFERENCE, poses, "a person", context))
    others = {
        "seed": model.generate(REFERENCE, poses, "a person", Context.quiet(seed=1)),
        "pose": model.generate(REFERENCE, track(6, seed=1), "a person", context),
        "reference": model.generate(noise_picture(24, 40, seed=1), poses, "a person", context),
        "prompt": model.generate(REFERENCE, poses, "zebras, all over", context),
    }
    if name == "animate":
        faces = np.random.default_rng(0).integers(0, 255, (6, 20, 20, 3), np.uint8)
        others["face"] = model.generate(REFERENCE, dataclasses.replace(poses, faces=faces), "a person", context)
    for condition, other in others.items():
        assert other.shape == first.shape and not np.array_equal(first, other), condition


@BOTH
def test_a_segment_goes_on_from_the_one_before(models: dict[str, Generator], name: str) -> None:
    """Only the first pose differs: frames after the first segment differ too, through the frames that are carried."""
    poses = track(24)
    changed = dataclasses.replace(poses, joints_px=poses.joints_px.copy())
    changed.joints_px[0] = track(1, seed=5).joints_px[0]
    first = models[name].generate(REFERENCE, poses, "a person", Context.quiet())
    second = models[name].generate(REFERENCE, changed, "a person", Context.quiet())
    assert not np.array_equal(first[20:], second[20:])


@BOTH
def test_a_cancelled_video_stops_within_a_step(models: dict[str, Generator], name: str) -> None:
    model = models[name]
    few = model.settings
    model.settings = dataclasses.replace(few, steps=40)
    model.generate(REFERENCE, track(1), "a person", Context.quiet())
    stop = StopAfter(4)
    with pytest.raises(Cancelled):
        model.generate(REFERENCE, track(1), "a person", stop.context)
    assert stop.calls == 4
    model.settings = few
    assert len(model.generate(REFERENCE, track(1), "a person", Context.quiet())) == 1


def test_the_prompt_is_read_once(folders: dict[str, Path], tmp_path: Path) -> None:
    """With its embedding remembered the encoder is not even needed; another prompt needs it."""
    folder = tmp_path / "vace"
    shutil.copytree(folders["vace"], folder)
    quiet, prompts = Context.quiet(), tmp_path / "prompts"
    first = video.WanVACE(folder, SOURCE, Placement(), quiet, VACE, prompts).generate(
        REFERENCE, track(1), "hello", quiet
    )
    weights = folder / "text_encoder" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])  # a broken encoder is noticed only when it is needed
    broken = video.WanVACE(folder, SOURCE, Placement(), quiet, VACE, prompts)
    with pytest.raises(UserError):
        broken.generate(REFERENCE, track(1), "hello again", quiet)
    weights.write_bytes(content)
    asked: list[object] = []
    import backend.diffusion.prompt_embeddings as module

    original = module.load
    module.load = lambda *args, **kwargs: asked.append(args) or original(*args, **kwargs)
    try:
        again = video.WanVACE(folder, SOURCE, Placement(), quiet, VACE, prompts)
        assert np.array_equal(first, again.generate(REFERENCE, track(1), "hello", quiet)) and not asked
        for file in prompts.iterdir():
            file.write_bytes(b"damaged")
        assert np.array_equal(first, again.generate(REFERENCE, track(1), "hello", quiet)) and len(asked) == 1
    finally:
        module.load = original


def test_segments_cover_the_motion_in_order() -> None:
    for count in (1, 2, 5, 6, 17, 18, 40, 81, 907):
        for length, overlap in ((17, 1), (17, 5), (81, 5)):
            pieces = video.segments(count, length, overlap)
            shown = [int(k) for number, piece in enumerate(pieces) for k in piece[overlap if number else 0 :]]
            assert shown[:count] == list(range(count))
            assert all(len(piece) % 4 == 1 and 5 <= len(piece) <= length for piece in pieces)
            for before, after in zip(pieces, pieces[1:], strict=False):
                assert np.array_equal(before[-overlap:], after[:overlap])
            assert max(shown) == count - 1 and np.abs(np.diff(shown)).max(initial=0) <= 1
            assert len(shown) - count < length


def test_a_size_of_its_own_is_kept(models: dict[str, Generator]) -> None:
    """The model works on sides of 16; the frames come in the track's own size."""
    frames = models["vace"].generate(REFERENCE, track(2, size=(37, 22)), "a person", Context.quiet())
    assert frames.shape == (2, 22, 37, 3)


def test_nothing_to_do_is_said(models: dict[str, Generator]) -> None:
    with pytest.raises(UserError, match="at least one frame"):
        models["vace"].generate(REFERENCE, track(0), "a person", Context.quiet())
    with pytest.raises(UserError, match="uint8"):
        models["vace"].generate(REFERENCE.astype(np.float32), track(1), "a person", Context.quiet())
