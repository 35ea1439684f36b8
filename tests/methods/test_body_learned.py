"""Method `body` with a video model: from generated frames to a bundle with controls, and back to the photo alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.context import Context
from backend.diffusion.interfaces import Source
from backend.diffusion.weights import Weights
from backend.errors import MODEL_MISSING, Cancelled, UserError
from backend.generate import GIVEN
from backend.human.frame_targets import Helpers
from backend.human.pose_tracks import training_motions
from backend.methods.body import photo_stages, stages
from backend.methods.body_learned import LearnSettings, Tools, first_avatar, read_motion
from backend.pipeline import Run, check_chain, run
from backend.preview import draw_cloud
from backend.raster.cameras import orbit_camera
from backend.splats.deform import pose_avatar
from backend.splats.optimise_persona import PersonaSettings
from backend.step_checkpoints import StepCheckpoints
from blender_addon.shared.avatar import read_bundle
from blender_addon.shared.gaussians import GaussianCloud
from blender_addon.shared.methods import BodyRequest
from blender_addon.shared.skeleton import JOINT_NAMES
from tests.diffusion.tiny_video import one_thread, write_vace
from tests.human.oracle_subject import figure
from tests.methods.learned import (
    HEIGHT,
    REQUEST,
    SMALL,
    WIDTH,
    Heard,
    KnownVideo,
    chain,
    few_motions,
    photo_only,
    values,
)

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread


@dataclass
class Some:
    """A folder of models in which some are installed."""

    root: Path
    ids: tuple[str, ...] = ()

    def installed(self, model_id: str) -> bool:
        return model_id in self.ids

    def folder(self, model_id: str) -> Path:
        if model_id not in self.ids:
            raise UserError(f"the model {model_id} is not installed", MODEL_MISSING)
        return self.root / model_id

    def source(self, model_id: str) -> Source:
        return Source(model_id, "", "CC0-1.0", True)


class Blind:
    """A detector that finds nobody."""

    noise = KnownVideo().noise

    def detect(self, image: np.ndarray) -> None:
        return None


@dataclass(frozen=True)
class Whole:
    """A finished run of the learned path."""

    folder: Path
    done: Run
    video: KnownVideo
    heard: Heard


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The oracle's video to a bundle, with checkpoints."""
    folder = tmp_path_factory.mktemp("learned")
    video, heard = KnownVideo(), Heard()
    context = replace(Context.quiet(), scratch=folder / "scratch", sink=heard)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    done = run(chain(video.tools()), values(folder / "result"), context, checkpoints)
    return Whole(folder, done, video, heard)


def test_without_a_video_model_the_stages_are_the_photo_only_ones(tmp_path: Path) -> None:
    nothing: Any = Weights(tmp_path)
    wanted = [*(stage.name for stage in photo_stages()), "Write the avatar"]
    assert [stage.name for stage in stages(BodyRequest(), nothing)] == wanted
    there: Any = Some(tmp_path, ("wan-vace",))
    assert [stage.name for stage in stages(BodyRequest(frames="photo"), there)] == wanted
    with pytest.raises(UserError, match="models fetch wan-vace") as missing:
        stages(BodyRequest(frames="generated"), nothing)
    assert missing.value.code == MODEL_MISSING


@pytest.mark.parametrize("model_id", ["wan-vace", "wan-animate"])
def test_with_a_video_model_the_learned_path_follows(model_id: str, tmp_path: Path) -> None:
    there: Any = Some(tmp_path, (model_id,))
    made = stages(BodyRequest(motions=("motions-0.bvh",)), there)
    check_chain(made, GIVEN)
    with_photos = stages(BodyRequest(photos=("photos-0.png",)), there)
    check_chain(with_photos, GIVEN)
    assert "again" in next(stage for stage in with_photos if stage.name == "Prepare the frames").needs
    photo = [stage.name for stage in photo_stages()]
    names = [stage.name for stage in made]
    assert names[: len(photo)] == photo
    assert names[len(photo) :] == [
        "Plan the motions", *(f"Show motion {k}" for k in (1, 2, 3)),
        *(f"Check motion {k}" for k in (1, 2, 3)), "Prepare the frames", "Learn the avatar", "Distil into controls",
        "Write the avatar",
    ]  # fmt: skip


def test_the_bundle_opens_with_controls_that_follow_the_pose(whole: Whole) -> None:
    cloud, avatar = read_bundle(whole.folder / "result")
    persona = whole.done.values["persona"].value
    assert avatar.controls is not None and len(avatar.controls) == SMALL.controls and avatar.controls.is_pose.all()
    assert len(cloud) == len(persona.splats) > 10_000
    assert (whole.folder / "result" / "preview.png").is_file()
    bent = np.zeros((55, 3))
    bent[JOINT_NAMES.index("left_shoulder"), 2] = -1.0
    bent[JOINT_NAMES.index("left_hip"), 0] = -0.9
    still = replace(avatar, controls=None)
    moved = pose_avatar(cloud, avatar, bent).positions_m - pose_avatar(cloud, still, bent).positions_m
    far = np.linalg.norm(moved, axis=1)
    assert far.max() > 1e-4
    # hands and face are carried by the bones alone
    hands = np.isin(avatar.skin_indices[avatar.triangles[avatar.bind_triangle][:, 0], 0], range(25, 55))
    assert hands.sum() > 50 and far[hands].max() == 0


def test_the_result_says_what_made_it(whole: Whole) -> None:
    said = "\n".join(whole.done.outcome.generators)
    for words in ("oracle of moving figures", "PERSONA from 12 generated frames", "perceptual term", "default body"):
        assert words in said
    assert "photo only" not in said and whole.done.warnings == whole.done.outcome.warnings


def test_progress_has_sensible_totals(whole: Whole) -> None:
    assert all(0 <= done <= total and total > 0 for _, done, total in whole.heard.lines)
    learning = [done for stage, done, _ in whole.heard.lines if "Learn the avatar" in stage]
    assert learning[-1] == 100 and len(learning) >= 3


def drawn(whole: Whole, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The network's avatar and the bundle in a pose, uint8 [S, S, 3] by the same camera."""
    values = whole.done.values
    avatar = first_avatar(values["subject"], photo_only(), values["targets"].value, Context.quiet())
    values["learned"].value.put_into(avatar)
    camera = orbit_camera(np.array([0.0, 0.85, 0.0]), 4.0, 20.0, 5.0, 220.0, 160)
    with torch.no_grad():
        posed = avatar.pose(torch.as_tensor(pose, dtype=torch.float32), torch.zeros(3))
        splats, colours = avatar.splats(posed, "refined"), avatar.all_colours()
    turns = splats.rotations_wxyz / splats.rotations_wxyz.norm(dim=1, keepdim=True)
    arrays = (splats.means, splats.scales, turns, splats.opacities, colours)
    network = GaussianCloud.from_colours(*(array.detach().numpy() for array in arrays))
    bundle = pose_avatar(*read_bundle(whole.folder / "result"), pose)
    return draw_cloud(network, camera), draw_cloud(bundle, camera)


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    error = ((one.astype(float) - other) ** 2).mean() / 255**2
    return float(-10 * np.log10(max(error, 1e-12)))


def test_the_bundle_shows_what_the_network_shows(whole: Whole) -> None:
    """At rest exactly; in a pose that it was not distilled from as far as so few controls reach."""
    persona = whole.done.values["persona"].value
    assert persona.fit.total < 1 and persona.moved_m < 0.05
    assert psnr_db(*drawn(whole, np.zeros((55, 3)))) > 45
    unseen = training_motions(joints())[1].poses[40].astype(np.float64)
    assert psnr_db(*drawn(whole, unseen)) > 26


def test_a_killed_job_goes_on_without_a_new_video(whole: Whole, tmp_path: Path) -> None:
    """Cancelled while it learns; then everything before is taken from the checkpoints."""
    cancel = threading.Event()

    class StopsInTheLoop(Heard):
        def progress(self, stage: str, done: float, total: float, note: str) -> None:
            if "Learn the avatar" in stage and "loss" in note:
                cancel.set()

    video, checkpoints = KnownVideo(), tmp_path / "checkpoints"
    checkpoints.mkdir()
    for kept in sorted((whole.folder / "checkpoints").glob("*.npz"))[:-2]:  # as far as a job came that is killed there
        (checkpoints / kept.name).write_bytes(kept.read_bytes())
    context = Context(tmp_path / "scratch", sink=StopsInTheLoop(), cancel_event=cancel)
    with pytest.raises(Cancelled):
        run(chain(video.tools()), values(tmp_path / "result"), context, checkpoints)
    again = run(chain(video.tools()), values(tmp_path / "result"), Context.quiet(), checkpoints)
    assert video.made == 0
    first, second = (read_bundle(folder / "result")[0] for folder in (whole.folder, tmp_path))
    assert (
        np.abs(first.positions_m - second.positions_m).mean() < 1e-4
    )  # sums in another order differ in the last digit
    assert sum(record.resumed for record in again.records) == 5


def test_learning_goes_on_at_the_iteration(whole: Whole, tmp_path: Path) -> None:
    stage = next(stage for stage in chain(whole.video.tools()) if stage.name == "Learn the avatar")
    given = [whole.done.values[name] for name in stage.needs]

    class StopsAt(StepCheckpoints):
        def save(self, name: str, step: int, arrays: Mapping[str, np.ndarray], key: str = "") -> None:
            super().save(name, step, arrays, key)
            if step == 20:
                context.cancel_event.set()

    context = replace(Context.quiet(), checkpoint=StopsAt(tmp_path, interval_s=0.0, clock=lambda: 0.0))
    with pytest.raises(Cancelled):
        stage.run(*given, context)
    part = stage.run(*given, replace(Context.quiet(), checkpoint=StepCheckpoints(tmp_path)))
    for name, numbers in whole.done.values["learned"].value.numbers.items():
        off = np.abs(part.value.numbers[name] - numbers)
        assert off.mean() < 1e-4 * max(1.0, float(np.abs(numbers).max())), name


@pytest.mark.parametrize("name", ["Show motion 1", "Check motion 1", "Prepare the frames", "Distil into controls"])
def test_every_stage_can_be_cancelled(name: str, whole: Whole) -> None:
    stage = next(stage for stage in chain(whole.video.tools()) if stage.name == name)
    context = Context.quiet()
    context.cancel_event.set()
    with pytest.raises(Cancelled):
        stage.run(*(whole.done.values[need] for need in stage.needs), context)


def assert_photo_only(done: Run, folder: Path, reason: str) -> None:
    cloud, avatar = read_bundle(folder)
    assert avatar.controls is None and len(cloud) == len(photo_only())
    assert any("photo only" in line for line in done.outcome.generators)
    assert [line for line in done.warnings if "from the photo alone" in line and reason in line]


def test_refused_frames_never_cost_the_result(whole: Whole, tmp_path: Path) -> None:
    tools = replace(whole.video.tools(), helpers=lambda *_: Helpers(Blind()))
    shown = {name: whole.done.values[name] for name in ("subject", "motions", "settings", "shown_1", "shown_2")}
    done = run(chain(tools)[3:], {**values(tmp_path / "result"), **shown}, Context.quiet())
    assert_photo_only(done, tmp_path / "result", "12 of 12 generated frames were left out: nobody found 12")


def test_a_small_vace_of_the_published_layout_goes_the_whole_way(tmp_path: Path) -> None:
    """Its numbers are random: its frames show nobody, which is found, said, and costs the generated frames only."""
    write_vace(tmp_path / "wan-vace")
    models: Any = Some(tmp_path, ("wan-vace",))
    tools = Tools(helpers=lambda *_: Helpers(Blind()), motions=lambda joints: few_motions(joints, 2), settings=SMALL)
    context = replace(Context.quiet(), scratch=tmp_path / "scratch", memory_bytes=int(200e9))
    done = run(chain(tools), values(tmp_path / "result", models=models), context)
    shown = done.values["shown_1"].value
    assert shown.frames.shape == (2, HEIGHT, WIDTH, 3) and "wan-vace" in shown.sources[0]
    assert_photo_only(done, tmp_path / "result", "nobody found 4")


def test_a_model_that_does_not_fit_costs_the_generated_frames_only(tmp_path: Path) -> None:
    models: Any = Some(tmp_path, ("wan-vace",))
    tools = Tools(motions=few_motions, settings=SMALL)
    context = replace(Context.quiet(), scratch=tmp_path / "scratch", memory_bytes=10_000_000)
    done = run(chain(tools), values(tmp_path / "result", models=models), context)
    assert_photo_only(done, tmp_path / "result", "memory")
    automatic = run(
        chain(tools, replace(REQUEST, frames="auto")), values(tmp_path / "result"), context
    )  # fmt: skip
    assert_photo_only(automatic, tmp_path / "result", "without a graphics card")


@lru_cache(maxsize=1)
def joints() -> np.ndarray:
    return figure().body.joints_m


def test_a_users_motion_is_shown_in_its_place(tmp_path: Path) -> None:
    poses = np.zeros((60, 52, 3))
    poses[:, 0] = [np.pi / 2, 0, 0]  # AMASS is Z up
    poses[:, JOINT_NAMES.index("left_elbow"), 1] = np.linspace(0, -1.2, 60)
    walked = np.stack([np.linspace(0, 6, 60), np.zeros(60), np.full(60, 0.95)], 1)
    path = tmp_path / "motions-0.npz"
    np.savez(path, poses=poses.reshape(60, -1), trans=walked, mocap_framerate=np.array(30.0), betas=np.zeros(16))
    made = read_motion(path, joints())
    assert 29 <= len(made) <= 31 and made.frames_per_second == 15
    assert np.ptp(made.pelvis_m[:, [0, 2]], axis=0).max() < 0.3
    bend = np.linalg.norm(made.poses[-1, JOINT_NAMES.index("left_elbow")])
    assert bend == pytest.approx(1.2, abs=0.1)
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="choose another file"):
        read_motion(tmp_path / "bad.npz", joints())


def test_presets_grow() -> None:
    fast, balanced, best = (LearnSettings.of(preset) for preset in ("fast", "balanced", "best"))
    assert fast.controls < balanced.controls < best.controls == 96
    assert (
        best.persona.subdivisions == 2 and best.frames.height_px == 1024 and isinstance(best.persona, PersonaSettings)
    )
