"""Writing actions: SMPL-X rotations per frame as keys on the armature, in the data layout of every Blender from 4.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bpy
import numpy as np

from ..rig.armature import bone_matrices
from ..shared.axes import BODY_TO_BLENDER, body_to_blender_points
from ..shared.gaussians import matrices_to_wxyz
from ..shared.skeleton import BONE_NAMES, axis_angle_to_matrices, to_bone_rotation
from .poses import Motion

_LINEAR = 1
"""Number of the interpolation LINEAR in Blender's enum, as foreach_set takes it."""


def write_action(armature: bpy.types.Object, motion: Motion, first_frame: int = 1) -> bpy.types.Action:
    """Make an action with one linear key per frame; joints that keep still get one key.

    The action has a fake user and is not assigned.

    Args:
        armature: From `rig.armature.create_armature`.
        motion: The motion; a cyclic one gets one more key that repeats the first.
        first_frame: Frame of the first key.
    """
    action = bpy.data.actions.new(motion.name)
    action.use_fake_user = True
    curves = CurveStore(action, armature.name)
    quaternions = bone_quaternions(armature, motion.pose)
    location = pelvis_location(armature, motion.translation_m)
    if motion.cyclic:
        quaternions, location = (np.concatenate([a, a[:1]]) for a in (quaternions, location))
    for joint, bone in enumerate(BONE_NAMES):
        for k in range(4):
            curves.add(f'pose.bones["{bone}"].rotation_quaternion', k, bone, first_frame, quaternions[:, joint, k])
    for k in range(3):
        curves.add(f'pose.bones["{BONE_NAMES[0]}"].location', k, BONE_NAMES[0], first_frame, location[:, k])
    for name, value in motion.face.items():
        curves.add(f'["{name}"]', 0, "Face", first_frame, np.array([value]))
    if motion.cyclic:
        action.use_frame_range = True
        action.frame_start, action.frame_end = first_frame, first_frame + len(quaternions) - 1
        action.use_cyclic = True
    return action


def assign_action(armature: bpy.types.Object, action: bpy.types.Action) -> None:
    """Make `action` the armature's active one."""
    data = armature.animation_data or armature.animation_data_create()
    data.action = action
    if getattr(action, "slots", None) and data.action_slot is None:
        data.action_slot = action.slots[0]


def bone_quaternions(armature: bpy.types.Object, pose: np.ndarray) -> np.ndarray:
    """Bones' local quaternions [F, 55, 4] of SMPL-X poses [F, 55, 3]; signs chosen so that neighbours are close."""
    rotations = BODY_TO_BLENDER @ axis_angle_to_matrices(pose) @ BODY_TO_BLENDER.T
    quaternions = matrices_to_wxyz(to_bone_rotation(rotations, bone_matrices(armature)))
    flip = np.cumprod(np.where((quaternions[1:] * quaternions[:-1]).sum(axis=-1, keepdims=True) < 0, -1, 1), axis=0)
    quaternions[1:] *= flip
    return quaternions


def pelvis_location(armature: bpy.types.Object, translation_m: np.ndarray) -> np.ndarray:
    """The pelvis bone's location [F, 3] for movements [F, 3] of the body frame."""
    return body_to_blender_points(np.asarray(translation_m, np.float64)) @ bone_matrices(armature)[0]


class CurveStore:
    """Animation curves of an action: in a slot's channel bag from Blender 4.4, directly in the action below."""

    def __init__(self, action: bpy.types.Action, slot_name: str, id_type: str = "OBJECT") -> None:
        """For what `id_type` says: OBJECT, or KEY for shape keys."""
        self._store: Any = action
        if id_type != "OBJECT" and not hasattr(action, "slots"):
            action.id_root = id_type
        self._bag: Any = None
        self._groups: dict[str, Any] = {}
        if hasattr(action, "slots"):
            slot = action.slots.new(id_type=id_type, name=slot_name)
            strip = action.layers.new("Layer").strips.new(type="KEYFRAME")
            self._store = self._bag = strip.channelbag(slot, ensure=True)

    def add(self, path: str, index: int, group: str, first_frame: int, values: np.ndarray) -> None:
        """A curve with one key per value from `first_frame` on, or a single key if the value never changes."""
        self.add_at(path, index, group, range(first_frame, first_frame + len(values)), values)

    def add_at(self, path: str, index: int, group: str, frames: Sequence[int], values: np.ndarray) -> None:
        """A curve with a key at each of the frames, or a single key if the value never changes."""
        curve = self._new(path, index, group)
        points = curve.keyframe_points
        if len(values) == 1 or np.ptp(values) < 1e-6:
            points.add(1)
            points[0].co, points[0].interpolation = (frames[0], values[0]), "LINEAR"
        else:
            points.add(len(values))
            keys = np.empty((len(values), 2), np.float32)
            keys[:, 0], keys[:, 1] = frames, values
            points.foreach_set("co", keys.ravel())
            points.foreach_set("interpolation", np.full(len(values), _LINEAR, np.int32))
        curve.update()

    def _new(self, path: str, index: int, group: str) -> Any:
        if self._bag is None:
            return self._store.fcurves.new(path, index=index, action_group=group)
        if group not in self._groups:
            self._groups[group] = self._bag.groups.new(group)
        curve = self._bag.fcurves.new(path, index=index)
        curve.group = self._groups[group]
        return curve
