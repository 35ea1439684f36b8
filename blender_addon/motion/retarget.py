"""Motion of another skeleton, or of another SMPL-X body, played by an avatar.

Every joint takes over the other joint's turn from its rest pose, after the two rest poses are brought to agree bone by
bone, so that an A-pose, splayed legs or other proportions do not matter. The root's path is scaled by the length of the
legs, and feet that stand stay where they stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..shared.bone_names import match_joints
from ..shared.skeleton import JOINT_NAMES, PARENTS, axis_angle_to_matrices
from .bvh import Bvh, MotionError
from .poses import Motion, local_rotations, lowest_points, matrices_to_axis_angle, posed_joints, world_rotations

_SIDES = ("left", "right")
_FEET = np.array([[JOINT_NAMES.index(f"{s}_{part}") for part in ("ankle", "foot")] for s in _SIDES])

_CONTACT_HEIGHT = 0.05
"""A foot stands while it is this close to the floor, in lengths of the leg ..."""

_CONTACT_SPEED = 0.45
"""... and slower than this, in lengths of the leg per second."""

_BLEND_SECONDS = 0.15
"""A foot is led to its place and released over this time."""

_JUMP_DEGREES = 10.0

MAX_FRAMES = 100_000
"""Longest motion that is keyed, over an hour at 24 frames a second: each frame has 230 keys."""

_CHILD = {"pelvis": "spine1", "spine3": "neck", "left_wrist": "left_middle1", "right_wrist": "right_middle1"}
"""Which child gives a joint's direction where it has several."""


Up = Literal["auto", "y", "z"]


@dataclass(frozen=True)
class RetargetSettings:
    """How a motion is taken over.

    Attributes:
        fps: Frames per second of the result.
        speed: 2 plays twice as fast.
        in_place: Keep the pelvis above its place; it still rises and falls.
        keep_contacts: Hold standing feet in place.
        face_front: Turn the motion so that it begins facing the front.
        up: Axis of an .npz file that points up; "auto" tells it from how the body mostly stands. A BVH file's own rest
            pose says it.
    """

    fps: float = 24.0
    speed: float = 1.0
    in_place: bool = False
    keep_contacts: bool = True
    face_front: bool = True
    up: Up = "auto"


def retarget_bvh(name: str, bvh: Bvh, joints_m: np.ndarray, settings: RetargetSettings | None = None) -> Motion:
    """An avatar's motion after a BVH file's.

    Args:
        name: Of the motion.
        bvh: The file, in any unit; Y or Z up.
        joints_m: [55, 3] rest joints of who shall move, body frame, floor at height 0.
        settings: None takes the defaults.

    Raises:
        MotionError: If the file's joints cannot be told.
    """
    settings = settings or RetargetSettings()
    source = source_joints(bvh)
    to_body = _body_axes(bvh, source)
    times = resample(len(bvh.rotations), bvh.frame_seconds, settings, first=_begins_with_rest(bvh))
    moving = replace(bvh, rotations=times.turns(bvh.rotations), positions=times.values(bvh.positions))
    rotations, positions = moving.world()
    rotations = to_body @ rotations @ to_body.T
    positions, rest = positions @ to_body.T, bvh.rest() @ to_body.T

    joints = np.asarray(joints_m, np.float64)
    local = _turns(rotations, rest, source, joints)
    scale = leg_length(joints, JOINT_NAMES.index) / leg_length(rest, source.__getitem__)
    rows = [[source[f"{side}_{part}"] for part in ("ankle", "foot")] for side in _SIDES]
    feet = positions[:, rows]
    return finish(name, local, joints, scale * positions[:, source["pelvis"]], scale * feet, settings)


def source_joints(bvh: Bvh) -> dict[str, int]:
    """Row of the file's joint that plays each of SMPL-X's joints.

    Raises:
        MotionError: If one without which nobody can walk is not there.
    """
    matched = match_joints(bvh.names)
    needed = ("pelvis", "head", *(f"{s}_{part}" for s in _SIDES for part in ("hip", "knee", "ankle", "foot")))
    missing = next((joint for joint in needed if joint not in matched), None)
    if missing is not None:
        raise MotionError(f"no joint of the motion plays {missing}; it has: {', '.join(bvh.names[:12])} ...")
    return {joint: bvh.names.index(other) for joint, other in matched.items()}


def finish(
    name: str, local: np.ndarray, joints: np.ndarray, pelvis: np.ndarray, feet: np.ndarray, settings: RetargetSettings
) -> Motion:
    """Lead the root, hold the feet and turn the whole to the front.

    Args:
        name: Of the motion.
        local: [F, 55, 3, 3] rotations.
        joints: [55, 3] rest joints, floor at height 0.
        pelvis: [F, 3] path of the source's pelvis, metres at our size.
        feet: [F, 2, 2, 3] paths of the source's feet, left and right, ankle and ball.
        settings: What to do.
    """
    path = _root_path(local, joints, pelvis, feet)
    if settings.keep_contacts:
        local = _hold_feet(local, path, joints, feet[:, :, 0], 1.0 / settings.fps)
    if settings.in_place:
        path[:, [0, 2]] = 0.0
    if settings.face_front:
        front = local[0, 0] @ np.array([0.0, 0.0, 1.0])
        turn = _about(np.array([0.0, 1.0, 0.0]), -float(np.arctan2(front[0], front[2])))
        local, path = local.copy(), path @ turn.T
        local[:, 0] = turn @ local[:, 0]
    return Motion(name, matrices_to_axis_angle(local), path, {})


def _begins_with_rest(bvh: Bvh) -> int:
    """1 if the first frame is a pose of calibration, from which the motion jumps, as in many captured files; else 0."""
    if len(bvh.rotations) < 10:
        return 0
    turns = bvh.rotations[1:] @ np.swapaxes(bvh.rotations[:-1], -1, -2)
    degrees = np.degrees(np.arccos(np.clip((np.trace(turns, axis1=-2, axis2=-1) - 1) / 2, -1, 1))).max(axis=1)
    return int(degrees[0] > _JUMP_DEGREES and degrees[0] > 4 * degrees[1:].max())


@dataclass(frozen=True)
class Times:
    """Where in a source each frame of the result lies: between two of its frames.

    Attributes:
        low: [F] the frame before.
        high: [F] the frame after.
        share: [F] 0..1 of the way from the one to the other.
    """

    low: np.ndarray
    high: np.ndarray
    share: np.ndarray

    def values(self, source: np.ndarray) -> np.ndarray:
        """[F, ...] of values [S, ...], on straight lines."""
        share = self.share.reshape(-1, *(1,) * (source.ndim - 1))
        return source[self.low] * (1 - share) + source[self.high] * share

    def turns(self, source: np.ndarray) -> np.ndarray:
        """[F, J, 3, 3] of rotations [S, J, 3, 3], on the shortest arcs."""
        low = source[self.low]
        between = np.flatnonzero(self.share)
        if not len(between):
            return low
        step = np.swapaxes(low[between], -1, -2) @ source[self.high[between]]
        part = matrices_to_axis_angle(step) * self.share[between, None, None]
        turned = low.copy()
        turned[between] = low[between] @ axis_angle_to_matrices(part)
        return turned


def resample(frames: int, frame_seconds: float, settings: RetargetSettings, first: int) -> Times:
    """Where in the source the frames of the result lie, at its frame rate and speed.

    Raises:
        MotionError: If the result would be longer than `MAX_FRAMES`.
    """
    seconds = (frames - 1 - first) * frame_seconds / settings.speed
    # Files round their frame time (.03333): the last frame may come a little too soon.
    count = max(1, int(np.floor(seconds * settings.fps + 0.05)) + 1)
    if count > MAX_FRAMES:
        raise MotionError(
            f"the motion takes {count} frames here, at most {MAX_FRAMES}; cut it into parts, or play it faster"
        )
    place = first + np.arange(count) / settings.fps * settings.speed / frame_seconds
    whole = np.rint(place)
    # A frame that is all but met is met: rounded frame times must not blur every frame a little.
    place = np.clip(np.where(np.abs(place - whole) < 0.05, whole, place), 0, frames - 1)
    low = np.floor(place).astype(int)
    return Times(low, np.minimum(low + 1, frames - 1), place - low)


def _body_axes(bvh: Bvh, source: dict[str, int]) -> np.ndarray:
    """Rotation [3, 3] from the file's axes to the body frame: up is the axis nearest to hips-to-head, front follows."""
    rest = bvh.rest()
    up = _unit_axis(rest[source["head"]] - (rest[source["left_knee"]] + rest[source["right_knee"]]) / 2)
    left = _unit_axis(rest[source["left_hip"]] - rest[source["right_hip"]])
    if abs(float(up @ left)) > 0.5:
        raise MotionError("the rest pose of the motion does not stand upright; its axes cannot be told")
    return np.stack([left, up, np.cross(left, up)])


def _unit_axis(direction: np.ndarray) -> np.ndarray:
    axis = np.zeros(3)
    largest = int(np.abs(direction).argmax())
    axis[largest] = np.sign(direction[largest]) or 1.0
    return axis


def _turns(rotations: np.ndarray, rest: np.ndarray, source: dict[str, int], joints: np.ndarray) -> np.ndarray:
    """Local rotations [F, 55, 3, 3]: the source's global turns, on rest poses brought to agree."""
    world = np.empty((len(rotations), len(JOINT_NAMES), 3, 3))
    for joint, name in enumerate(JOINT_NAMES):
        parent = int(PARENTS[joint])
        if name not in source:
            world[:, joint] = world[:, parent] if parent >= 0 else np.eye(3)
            continue
        child = _child(name)
        align = np.eye(3)
        if child in source and child != "":
            ours = joints[JOINT_NAMES.index(child)] - joints[joint]
            theirs = rest[source[child]] - rest[source[name]]
            # The trunk's bones differ in how they are cut, not in how it stands.
            if not name.startswith(("spine", "pelvis", "neck")):
                align = _between(ours, theirs)
        world[:, joint] = rotations[:, source[name]] @ align
    return local_rotations(world)


def _child(name: str) -> str:
    if name in _CHILD:
        return _CHILD[name]
    children = np.flatnonzero(JOINT_NAMES.index(name) == PARENTS)
    return JOINT_NAMES[children[0]] if len(children) else ""


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotation [3, 3] that turns direction a into direction b; none where one of them has no length."""
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    if min(lengths) < 1e-9:
        return np.eye(3)
    a, b = a / lengths[0], b / lengths[1]
    axis, cosine = np.cross(a, b), float(a @ b)
    if cosine < -1 + 1e-9:
        other = np.cross(a, [1.0, 0, 0] if abs(a[0]) < 0.9 else [0, 1.0, 0])
        other /= np.linalg.norm(other)
        return 2 * np.outer(other, other) - np.eye(3)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)


def leg_length(positions: np.ndarray, index: Callable[[str], int]) -> float:
    """Mean length of the two thighs: every rig has them; shins end where a rig puts the ankle.

    Args:
        positions: [J, 3] rest joints.
        index: Row of one of SMPL-X's joints.
    """
    thighs = [positions[index(f"{side}_knee")] - positions[index(f"{side}_hip")] for side in _SIDES]
    return float(np.linalg.norm(thighs, axis=1).mean())


def _root_path(local: np.ndarray, joints: np.ndarray, pelvis: np.ndarray, feet: np.ndarray) -> np.ndarray:
    """Movement of the pelvis [F, 3]: begins above the origin; feet are as high above the floor as the source's."""
    path = pelvis - pelvis[0]
    ours = posed_joints(joints, local)[:, _FEET]
    floor = np.percentile(feet[..., 1], 5, axis=0)
    theirs = (feet[..., 1] - floor).min(axis=(1, 2))
    path[:, 1] = theirs - (ours[..., 1] - joints[_FEET, 1]).min(axis=(1, 2))
    # Whatever the source's feet are like, ours do not go through the floor.
    path[:, 1] = np.maximum(path[:, 1], -lowest_points(joints, local).min(axis=1))
    return path


def _hold_feet(
    local: np.ndarray, path: np.ndarray, joints: np.ndarray, feet: np.ndarray, frame_seconds: float
) -> np.ndarray:
    """Turn hips and knees so that a foot that stands in the source stands still here too.

    Args:
        local: [F, 55, 3, 3] rotations.
        path: [F, 3] movement of the pelvis.
        joints: [55, 3] rest joints.
        feet: [F, 2, 3] ankles of the source, metres at our size.
        frame_seconds: Time from one frame to the next.
    """
    leg = 2 * leg_length(joints, JOINT_NAMES.index)
    posed = posed_joints(joints, local) + path[:, None]
    local = local.copy()
    for side, name in enumerate(_SIDES):
        hip, knee, ankle = (JOINT_NAMES.index(f"{name}_{part}") for part in ("hip", "knee", "ankle"))
        standing = _standing(feet[:, side], leg, frame_seconds)
        shift = _shift_to_stand(posed[:, ankle], standing, frame_seconds)
        if np.abs(shift).max() > 0:
            _reach(local, posed, joints, (hip, knee, ankle), posed[:, ankle] + shift)
    return local


def _standing(ankle: np.ndarray, leg: float, frame_seconds: float) -> np.ndarray:
    """[F] bool: near the floor and slow."""
    speed = np.linalg.norm(np.gradient(ankle, axis=0)[:, [0, 2]], axis=1) / frame_seconds if len(ankle) > 1 else 0.0
    height = ankle[:, 1] - np.percentile(ankle[:, 1], 5)
    return (height < _CONTACT_HEIGHT * leg) & (speed < _CONTACT_SPEED * leg)


def _shift_to_stand(ankle: np.ndarray, standing: np.ndarray, frame_seconds: float) -> np.ndarray:
    """How far [F, 3] a foot is moved along the floor: to its mean place while it stands, blended before and after."""
    shift, weight = np.zeros_like(ankle), np.zeros(len(ankle))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], standing.astype(int), [0]])))
    blend = max(1, round(_BLEND_SECONDS / frame_seconds))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if end - start < 2:
            continue
        place = ankle[start:end, [0, 2]].mean(axis=0)
        frames = np.arange(max(0, start - blend), min(len(ankle), end + blend))
        distance = np.maximum(np.maximum(start - frames, frames - (end - 1)), 0) / (blend + 1)
        share = 0.5 + 0.5 * np.cos(np.pi * distance)
        # Outside its interval a foot follows the shift of the nearest standing frame.
        nearest = np.clip(frames, start, end - 1)
        move = np.zeros((len(frames), 3))
        move[:, [0, 2]] = place - ankle[nearest][:, [0, 2]]
        better = share > weight[frames]
        shift[frames[better]], weight[frames[better]] = (share[:, None] * move)[better], share[better]
    return shift


def _reach(
    local: np.ndarray, posed: np.ndarray, joints: np.ndarray, chain: tuple[int, int, int], target: np.ndarray
) -> None:
    """Two-bone inverse kinematics in the plane that the leg already bends in; the foot keeps its global turn."""
    hip, knee, ankle = chain
    world = world_rotations(local)
    upper, lower = (float(np.linalg.norm(joints[b] - joints[a])) for a, b in ((hip, knee), (knee, ankle)))
    to_target, to_ankle = target - posed[:, hip], posed[:, ankle] - posed[:, hip]
    reach = np.clip(np.linalg.norm(to_target, axis=1), abs(upper - lower) + 1e-4, upper + lower - 1e-4)
    for frame in range(len(local)):
        first = _between(to_ankle[frame], to_target[frame])
        thigh = first @ (posed[frame, knee] - posed[frame, hip])
        shin = first @ (posed[frame, ankle] - posed[frame, knee])
        axis = np.cross(thigh, shin)
        length = np.linalg.norm(axis)
        # A straight leg bends about the knee's own side axis.
        axis = axis / length if length > 1e-6 else first @ world[frame, hip] @ np.array([1.0, 0, 0])
        wanted = np.pi - _corner(upper, lower, reach[frame])
        now = np.arctan2(length, float(thigh @ shin))
        at_hip = _corner(upper, float(np.linalg.norm(thigh + shin)), lower) - _corner(upper, reach[frame], lower)
        turn_hip, turn_knee = _about(axis, at_hip), _about(axis, wanted - now)
        hip_world = turn_hip @ first @ world[frame, hip]
        knee_world = turn_hip @ turn_knee @ first @ world[frame, knee]
        local[frame, hip] = world[frame, PARENTS[hip]].T @ hip_world
        local[frame, knee] = hip_world.T @ knee_world
        local[frame, ankle] = knee_world.T @ world[frame, ankle]


def _corner(a: float, b: float, opposite: float) -> float:
    """Angle between sides a and b of a triangle."""
    return float(np.arccos(np.clip((a * a + b * b - opposite * opposite) / (2 * a * b), -1, 1)))


def _about(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
