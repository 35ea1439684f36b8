"""Learning a PERSONA avatar: a step and the whole loop, against the same loop as it is usually written.

The person is made up: the default body in coloured, bulging clothes that follow the pose, with hair, drawn in the poses
of the training motions. Depth, normals, parts, seam and face patch come from the same drawing, so that every term has
its target. The other loop draws every picture by itself, looks at whole pictures and asks the skinning field at every
step; what it computes is the same.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from backend.benches.measuring import Bench, Options, Row, absent_row, interleaved, time_row, value_row

if TYPE_CHECKING:
    import torch

    from backend.human.camera import PinholeCamera
    from backend.human.frame_targets import PackedFrame
    from backend.human.skin_field import SkinField
    from backend.splats.bound import BoundSplats
    from backend.splats.optimise_persona import Learner, PersonaSettings
    from backend.splats.perceptual import PerceptualLoss
    from backend.splats.persona import PersonaAvatar, Template
    from backend.splats.persona_targets import PersonaFrames, Target

NO_GPU = "did not run: there is no CUDA device here; python -m backend bench persona_full on one with 24 GB or more"
AGAINST = "a pass per picture, whole pictures, the field asked at every step"
TARGET_S = 600.0
"""Of the whole published schedule on an H100-class card."""

HAIR = 6000
SOME_STEPS = 20
"""Of the fast row: the field is asked once in them, though the preset asks it once in a hundred."""

MEMORY_STEPS = 2
"""One of a generated frame, one of the photograph."""


@dataclass(frozen=True)
class Scene:
    """A made-up person.

    Attributes:
        template, skin: The body and its skinning field.
        hair: Gaussians of the outline.
        whole: Pictures as a video model gives them, the photograph first.
        near: The same, cropped to the person.
        unseen: Pictures in further poses, cropped.
        device: Torch device.
    """

    template: Template
    skin: SkinField
    hair: BoundSplats
    whole: PersonaFrames
    near: PersonaFrames
    unseen: PersonaFrames
    device: str

    def avatar(self, requery_every: int) -> PersonaAvatar:
        """One that has learned nothing: grey, without hair's colours."""
        import torch

        from backend.splats.persona import PersonaAvatar
        from backend.splats.persona_layer import OutlineLayer

        torch.manual_seed(0)
        count = int(self.template.coarse.max()) + 1
        hair = replace(self.hair, colours=np.full_like(self.hair.colours, 0.5))
        layer = OutlineLayer(hair, self.template.points_m[:count], self.template.coarse)
        grey = np.full((len(self.template), 3), 0.5, np.float32)
        return PersonaAvatar(self.template, self.skin, grey, requery_every=requery_every, layer=layer).to(self.device)


def make_scene(settings: PersonaSettings, frames: int, device: str, height_px: int = 0, resolution: int = 0) -> Scene:
    """A person in some poses.

    Args:
        settings: Sizes.
        frames: How many are generated.
        device: Torch device.
        height_px: Of a whole picture; 0 for `settings.picture_px`.
        resolution: Of the skinning field; 0 for the published one on a card, half of it on a processor.
    """
    import torch

    from backend.human.model import load_default_body
    from backend.human.pose_tracks import training_motions
    from backend.human.skin_field import FieldSettings, diffuse
    from backend.splats.persona import PersonaAvatar, make_template
    from backend.splats.persona_layer import OutlineLayer

    body = load_default_body()
    rest, joints = body.rest(np.zeros(20))
    template = make_template(
        rest, body.triangles, body.twist.skin_weights, joints, twist=body.twist, regions=body.regions,
        action_offsets_m=body.action_dirs_m.transpose(2, 0, 1), subdivisions=settings.subdivisions,
    )  # fmt: skip
    resolution = resolution or (128 if device == "cuda" else 64)
    skin = diffuse(rest, body.twist.skin_weights, FieldSettings(resolution=resolution), device)
    hair = _hair(rest, body.triangles, body.skin_weights)
    torch.manual_seed(1)
    truth = PersonaAvatar(
        template, skin, _clothes(template.points_m), requery_every=50, labels=_labels(template),
        layer=OutlineLayer(hair, rest, body.triangles),
    )  # fmt: skip
    truth = truth.to(device)
    with torch.no_grad():
        truth.mean_offsets_m.add_(_bulges(truth))
        for weight in truth.deformation.layers[-1].parameters():
            weight.normal_(0, 0.3)  # what folds there are follows the pose somehow
    motions = training_motions(joints)
    poses = np.concatenate([motion.poses for motion in motions])
    shifts = np.concatenate([motion.pelvis_m for motion in motions]) - joints[0]
    at = np.linspace(0, len(poses) - 1, 2 * frames).astype(int)
    camera = _camera(height_px or settings.picture_px)
    photo = _drawn(truth, np.zeros((55, 3)), np.zeros(3), camera, True, settings.face_px, joints)
    shown = [_drawn(truth, poses[k], shifts[k], camera, False, 0, joints) for k in at]
    from backend.splats.persona_targets import PersonaFrames

    def kept(targets: Sequence[Target]) -> PersonaFrames:
        return PersonaFrames(targets, device)

    whole = [photo, *shown[::2]]
    return Scene(
        template, skin, hair, kept(whole), kept([_cropped(target) for target in whole]),
        kept([_cropped(target) for target in shown[1::2][:20]]), device,
    )  # fmt: skip


def _camera(height_px: int) -> PinholeCamera:
    """As the published one: nine by sixteen, a body's height and a half in the frame."""
    from backend.human.camera import PinholeCamera

    w2c = np.diag([1.0, -1.0, -1.0, 1.0])
    w2c[:3, 3] = [0.0, 0.9, 5.0]
    width = round(height_px * 9 / 16)
    focal = 2000 * height_px / 1024
    return PinholeCamera(w2c, focal, focal, width / 2, height_px / 2, width, height_px)


def _clothes(points_m: np.ndarray) -> np.ndarray:
    """[N, 3] colours: waves of several lengths."""
    waves = [np.sin(points_m @ np.array(v) + k) for k, v in enumerate(((40, 9, 0), (5, 60, 12), (20, 20, 70)))]
    return np.clip(0.5 + 0.3 * np.stack(waves, 1), 0.05, 0.95).astype(np.float32)


def _labels(template: Template) -> np.ndarray:
    from backend.perception.labels import Label
    from backend.splats.persona_zones import Zone

    height = template.points_m[:, 1]
    labels = np.where(height > 0.95, Label.UPPER, np.where(height > 0.1, Label.LOWER, Label.SHOES))
    bare = np.isin(template.zones, (Zone.HEAD, Zone.FACE, Zone.LIPS, Zone.BORDER, Zone.EYE, Zone.MOUTH, Zone.HAND))
    return np.where(bare, Label.SKIN, labels).astype(np.uint8)


def _bulges(avatar: PersonaAvatar) -> torch.Tensor:
    """[N, 3] clothes a centimetre or two off the skin."""
    import torch

    from backend.splats.persona import vertex_normals
    from backend.splats.persona_zones import Zone

    points = avatar.points_m
    clothed = torch.as_tensor(avatar.template.zones == Zone.BODY).to(points)[:, None]
    high = 0.01 + 0.008 * torch.sin(points @ points.new_tensor([25.0, 18.0, 9.0]))[:, None]
    return clothed * high * vertex_normals(points, avatar.faces)


def _hair(rest_m: np.ndarray, triangles: np.ndarray, weights: np.ndarray) -> BoundSplats:
    from backend.splats.bound import BoundSplats, Kind
    from blender_addon.shared.skeleton import JOINT_NAMES

    rng = np.random.default_rng(3)
    head = weights[:, JOINT_NAMES.index("head")] > 0.9
    top = rest_m[:, 1] > np.percentile(rest_m[head, 1], 55)
    rows = np.flatnonzero((head & top)[triangles].all(1))
    owner = rng.choice(rows, HAIR)
    bary = rng.dirichlet(np.ones(3), HAIR)
    offsets = np.zeros((HAIR, 3))
    offsets[:, 2] = rng.uniform(0.005, 0.02, HAIR)
    turns = rng.standard_normal((HAIR, 4))
    turns /= np.linalg.norm(turns, axis=1, keepdims=True)
    tones = np.clip([0.25, 0.16, 0.1] + 0.05 * rng.standard_normal((HAIR, 3)), 0, 1)
    ones = np.ones(HAIR)
    return BoundSplats(
        owner, bary, offsets, turns, np.tile([0.008, 0.003, 0.001], (HAIR, 1)), 0.9 * ones, tones, ones,
        np.full(HAIR, Kind.HAIR), ones, ones, 0 * ones,
    )  # fmt: skip


def _drawn(
    truth: PersonaAvatar,
    pose: np.ndarray,
    shift_m: np.ndarray,
    camera: PinholeCamera,
    captured: bool,
    face_px: int,
    joints_m: np.ndarray,
) -> Target:
    """A picture with all its targets; the photograph with its face patch and without its light."""
    from backend.splats.persona_targets import Target
    from blender_addon.shared.skeleton import JOINT_NAMES

    frame = _packed(truth, pose, shift_m, camera, captured)
    if not captured:
        return Target(frame)
    head = joints_m[JOINT_NAMES.index("head")] + [0, 0.06, 0]
    x, y = camera.project(head[None])[0]
    side = 0.3 * camera.fx / camera.to_camera(head[None])[0, 2]
    near = camera.cropped(x - side / 2, y - side / 2, side, face_px)
    return Target(frame, frame.image, _packed(truth, pose, shift_m, near, True))


def _packed(
    truth: PersonaAvatar, pose: np.ndarray, shift_m: np.ndarray, camera: PinholeCamera, captured: bool
) -> PackedFrame:
    import torch

    from backend.human.frame_targets import DEPTH_STEP_M, PackedFrame
    from backend.raster import Cameras
    from backend.splats.persona import PART_COLOURS
    from backend.splats.persona_drawing import Channels, drawn_together

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, np.float32), device=truth.points_m.device)

    with torch.no_grad():
        posed = truth.pose(tensor(pose), tensor(shift_m))
        cameras = Cameras(
            tensor(camera.w2c[None]), tensor(camera.intrinsics_px[None]), camera.width, camera.height
        )  # fmt: skip
        w2c = cameras.w2c[0]
        depth = posed.means_m("refined") @ w2c[2, :3] + w2c[2, 3]
        channels = [
            Channels("colours", truth.all_colours(), False),
            Channels("depth", depth[:, None], False),
            Channels("normals", truth.all_normals(posed, "refined"), False),
            Channels("parts", truth.all_parts(), False),
        ]
        made = drawn_together(truth.splats(posed, "refined"), cameras, channels)
    drawn = {name: picture.cpu().numpy() for name, picture in made.items()}
    alpha = drawn["alpha"]
    image = drawn["colours"] + (1 - alpha) * 0.8
    inside = alpha > 0.5
    metres = drawn["depth"][0] / np.maximum(alpha, 1e-3)
    nearest = float(metres[inside].min()) - DEPTH_STEP_M if inside.any() else 0.0
    steps = np.where(inside, np.round((metres - nearest) / DEPTH_STEP_M), 0)
    palette = np.array(list(PART_COLOURS.values()))
    labels = ((drawn["parts"].transpose(1, 2, 0)[:, :, None] - palette) ** 2).sum(3).argmin(2)
    lengths = np.maximum(np.linalg.norm(drawn["normals"], axis=0), 1e-6)
    normals = np.where(inside, drawn["normals"] / lengths, 0).transpose(1, 2, 0)
    columns = np.arange(camera.width)[None] % max(camera.width // 4, 1) < camera.width // 32
    return PackedFrame(
        image=np.clip(image.transpose(1, 2, 0) * 255 + 0.5, 0, 255).astype(np.uint8),
        mask=np.round(255 * alpha).clip(0, 255).astype(np.uint8),
        labels=np.where(inside, labels, 0).astype(np.uint8),
        depth_steps=steps.clip(0, 65535).astype(np.uint16),
        nearest_m=nearest,
        normals=np.round(127 * normals).astype(np.int8),
        seam=(columns & inside) if captured else None,
        pose=np.asarray(pose, np.float32),
        translation_m=np.asarray(shift_m, np.float32),
        actions=np.zeros(52, np.float32),
        camera=camera,
        captured=captured,
    )


def _cropped(target: Target) -> Target:
    """As the real frames are kept: the person with a little background."""
    frame = target.frame
    rows, columns = np.flatnonzero(frame.mask.any(1)), np.flatnonzero(frame.mask.any(0))
    top, left = max(rows[0] - 6, 0), max(columns[0] - 6, 0)
    window = (slice(top, rows[-1] + 7), slice(left, columns[-1] + 7))
    arrays: dict[str, Any] = {
        name: None if getattr(frame, name) is None else np.ascontiguousarray(getattr(frame, name)[window])
        for name in ("image", "mask", "labels", "depth_steps", "normals", "seam")
    }
    height, width = arrays["mask"].shape
    camera = frame.camera
    moved = replace(camera, cx=camera.cx - left, cy=camera.cy - top, width=width, height=height)
    albedo = None if target.albedo is None else np.ascontiguousarray(target.albedo[window])
    return replace(target, frame=replace(frame, camera=moved, **arrays), albedo=albedo)


@dataclass
class PartClock:
    """Seconds of each part of many steps, and of the processor."""

    device: str
    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    worked: float = 0.0
    _last: float = 0.0
    _worked: float = 0.0

    def start(self) -> None:
        """A step begins."""
        self._wait()
        self.steps += 1
        self._last, self._worked = time.perf_counter(), time.process_time()

    def mark(self, name: str) -> None:
        """A part is done."""
        self._wait()
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        worked = time.process_time()
        self.worked += worked - self._worked
        self._last, self._worked = now, worked

    def table(self) -> str:
        """Milliseconds per step and part, and what the processor worked in a step, whoever else made it wait."""
        parts = ", ".join(f"{name} {1e3 * spent / self.steps:.1f}" for name, spent in self.seconds.items())
        return f"{parts} ms, {1e3 * self.worked / self.steps:.0f} ms of processor time"

    def _wait(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


def learners(
    scene: Scene, settings: PersonaSettings, perceptual: PerceptualLoss
) -> tuple[Learner, Learner, PartClock, PartClock]:
    """Ours and the usual loop, with clocks that are told their parts."""
    from backend.splats.optimise_persona import Learner
    from backend.splats.persona_drawing import drawn_one_by_one

    clocks = PartClock(scene.device), PartClock(scene.device)
    ours = Learner(
        scene.avatar(settings.requery_every), scene.near, settings, perceptual, mark=clocks[0].mark
    )  # fmt: skip
    theirs = Learner(scene.avatar(1), scene.whole, settings, perceptual, drawn_one_by_one, clocks[1].mark)
    return ours, theirs, *clocks


def _steps(learner: Learner, clock: PartClock, order: Sequence[int]) -> Callable[[], object]:
    def run() -> None:
        for number in order:
            clock.start()
            learner.step(number, late=False)

    return run


def _turns(frames: int, steps: int) -> list[int]:
    """The photograph and every generated frame in turns."""
    return [0 if k % 2 else 1 + (k // 2) % frames for k in range(steps)]


def persona_iteration_fast(options: Options) -> list[Row]:
    """A step of the preset "fast", averaged over photograph and generated frames."""
    import torch

    from backend.splats.optimise_persona import PersonaSettings
    from backend.splats.perceptual import PyramidLoss

    settings = replace(PersonaSettings.of("fast"), requery_every=SOME_STEPS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scene = make_scene(settings, 8, device)
    ours, theirs, our_clock, their_clock = learners(scene, settings, PyramidLoss())
    order = _turns(8, SOME_STEPS)
    runs = {"ours": _steps(ours, our_clock, order), "theirs": _steps(theirs, their_clock, order[:6])}
    times = interleaved(runs, options.repeats or 3)
    for name, share in (("ours", SOME_STEPS), ("theirs", 6)):
        times[name] = replace(times[name], seconds=tuple(s / share for s in times[name].seconds))
    whole = PersonaSettings.of("fast").most_steps * times["ours"].median_ms / 1e3
    print(f"  ours:   {our_clock.table()}\n  theirs: {their_clock.table()}", file=sys.stderr)
    note = (
        f"{len(ours.avatar)} Gaussians, {scene.whole.packed[0].frame.camera.height} px high; the preset's "
        f"{PersonaSettings.of('fast').most_steps} steps take {whole:.0f} s; ours: {our_clock.table()}; "
        f"against: {their_clock.table()}"
    )
    device_name = torch.cuda.get_device_name() if device == "cuda" else None
    return [time_row("persona_iteration_fast", times["ours"], AGAINST, times["theirs"], note, device_name)]


def persona_same_result(options: Options) -> list[Row]:
    """PSNR in unseen poses after the same short schedule: ours against the usual loop, at the preset "fast"'s sizes."""
    from backend.splats.optimise_persona import PersonaSettings
    from backend.splats.perceptual import PyramidLoss

    settings = PersonaSettings.of("fast")
    scene = make_scene(settings, 24, "cpu")
    ours, theirs, *clocks = learners(scene, settings, PyramidLoss())
    order = _turns(24, 100 * (options.repeats or 3))
    found = []
    for learner, clock in zip((ours, theirs), clocks, strict=True):
        for k, number in enumerate(order):
            clock.start()
            learner.step(number, late=k > 0.75 * len(order))
        found.append(psnr(learner.avatar, scene.unseen))
    note = f"{len(order)} steps, 20 unseen poses inside the person's crop; difference {found[0] - found[1]:+.2f} dB"
    return [value_row("persona_same_result", found[0], "dB", AGAINST, found[1], 1, note, better="higher")]


def persona_full(options: Options) -> list[Row]:
    """The whole published schedule at 576 x 1024: seconds, parts, and PSNR; a part of the usual loop beside it."""
    return _full(options, whole_against=False)


def persona_full_both(options: Options) -> list[Row]:
    """The same with the whole of the usual loop, an hour or more: whether the final PSNR is the same."""
    return _full(options, whole_against=True)


def _full(options: Options, whole_against: bool) -> list[Row]:
    import torch

    name = "persona_full_both" if whole_against else "persona_full"
    if not torch.cuda.is_available():
        return [absent_row(name, "s", AGAINST, NO_GPU)]
    from backend.splats.optimise_persona import PersonaSettings, schedule
    from backend.splats.perceptual import Lpips, expected_shapes

    settings = PersonaSettings.of("best")
    # random features of LPIPS's sizes cost what its real ones cost; nothing is downloaded for a measurement
    generator = torch.Generator().manual_seed(0)
    weights = {key: 0.05 * torch.rand(shape, generator=generator) for key, shape in expected_shapes().items()}
    perceptual = Lpips({key: value.cuda() for key, value in weights.items()})
    scene = make_scene(settings, 907, "cuda", 1024)
    ours, theirs, our_clock, their_clock = learners(scene, settings, perceptual)
    order = schedule(scene.near, settings, 0).tolist()

    def learn(learner: Learner, clock: PartClock, steps: Sequence[int]) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for k, number in enumerate(steps):
            if k < 100:  # waiting for every part would slow the rest
                clock.start()
            else:
                learner.mark = _ignore
            learner.step(number, late=k > settings.drop_at * len(steps))
        torch.cuda.synchronize()
        return time.perf_counter() - began

    _steps(ours, PartClock("cuda"), order[:10])()
    ours, theirs, our_clock, their_clock = learners(scene, settings, perceptual)
    torch.cuda.reset_peak_memory_stats()
    seconds = learn(ours, our_clock, order)
    peak = torch.cuda.max_memory_allocated() / 1e9
    part = order if whole_against else order[:100]
    against = learn(theirs, their_clock, part) * len(order) / len(part)
    quality = f"PSNR in unseen poses {psnr(ours.avatar, scene.unseen):.2f} dB"
    if whole_against:
        quality += f" against {psnr(theirs.avatar, scene.unseen):.2f} dB"
    print(f"  ours:   {our_clock.table()}\n  theirs: {their_clock.table()}", file=sys.stderr)
    note = (
        f"{len(order)} iterations, {len(ours.avatar)} Gaussians, target {TARGET_S:.0f} s; {quality}; peak {peak:.1f} "
        f"GB; ours: {our_clock.table()}; against{'' if whole_against else f' (from {len(part)} iterations)'}: "
        f"{their_clock.table()}"
    )
    return [value_row(name, seconds, "s", AGAINST, against, 1, note, device=torch.cuda.get_device_name())]


def _ignore(_: str) -> None:
    return None


def psnr(avatar: PersonaAvatar, frames: PersonaFrames) -> float:
    """Mean PSNR, dB, of cropped pictures over their own background."""
    import torch

    from backend.splats.persona_drawing import Channels, drawn_together
    from backend.splats.persona_losses import over

    found = []
    with torch.no_grad():
        for frame in frames:
            posed = avatar.pose(frame.pose, frame.translation_m, frame.actions)
            channels = [Channels("colours", avatar.all_colours(), False)]
            drawn = drawn_together(avatar.splats(posed, "refined"), frame.cameras, channels)
            error = (over(drawn, "colours", frame.image) - frame.image).square().mean()
            found.append(float(-10 * error.log10()))
    return float(np.mean(found))


def persona_memory(options: Options) -> list[Row]:
    """Peak memory of each preset's loop, each in a process of its own, after the frames are made."""
    import torch

    rows = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for preset in ("fast", "balanced", "best"):
        code = f"from backend.benches.persona import peak_gb; print(peak_gb({preset!r}, {device!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        name = f"persona_memory_{preset}"
        if done.returncode:
            rows.append(absent_row(name, "GB", "", f"the process ended with {done.returncode}"))
            continue
        before, after = map(float, done.stdout.split()[-2:])
        note = f"{MEMORY_STEPS} steps of the loop; {before:.2f} GB before them, with torch and four frames"
        rows.append(value_row(name, after, "GB", "", None, 1, note, device=None if device == "cpu" else device))
    return rows


def peak_gb(preset: Any, device: str) -> str:
    """Two figures as text: before and after a few steps of a preset's loop, GB."""
    import torch

    from backend.splats.optimise_persona import Learner, PersonaSettings
    from backend.splats.perceptual import Lpips, PyramidLoss, expected_shapes

    def peak() -> float:
        if device == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    settings = PersonaSettings.of(preset)
    scene = make_scene(settings, 3, device)
    before = peak()
    perceptual: PerceptualLoss = PyramidLoss()
    if settings.lpips:
        perceptual = Lpips({name: torch.rand(shape, device=device) for name, shape in expected_shapes().items()})
    learner = Learner(scene.avatar(settings.requery_every), scene.near, settings, perceptual)
    for number in _turns(3, MEMORY_STEPS):
        learner.step(number, late=False)
    return f"{before:.3f} {peak():.3f}"


BENCHES: dict[str, Bench] = {
    "persona_iteration_fast": persona_iteration_fast,
    "persona_same_result": persona_same_result,
    "persona_full": persona_full,
    "persona_full_both": persona_full_both,
    "persona_memory": persona_memory,
}
