"""What an avatar is seen to do, as plain keys on its 55 bones: no IK, no curls, no other action is needed any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import bpy
import numpy as np

from ..cloud.edit import clouds_at_rest
from ..rig.curls import CURL_FINGERS, curl_property
from ..rig.gaze import LOOK_SWITCH
from ..rig.limbs import LIMBS, release_limbs
from ..shared.gaussians import matrices_to_wxyz
from ..shared.skeleton import BONE_NAMES, PARENTS
from .bvh import MotionError
from .keys import CurveStore, assign_action


def bake_motion(rig: bpy.types.Object, frames: Sequence[int]) -> bpy.types.Action:
    """Record the rig as it is seen and make that its action; the controls are switched off.

    Args:
        rig: An avatar's armature.
        frames: One key each, in order.

    Raises:
        MotionError: If there are no frames.
    """
    if not len(frames):
        raise MotionError("there are no frames to bake; set the scene's first and last")
    sliders = list(_slider_names(rig))
    poses, values = _record(rig, frames, sliders)
    bases = _bases(rig, poses)
    turns = matrices_to_wxyz(bases[..., :3, :3])
    flip = np.where((turns[1:] * turns[:-1]).sum(axis=-1, keepdims=True) < 0, -1.0, 1.0)
    turns[1:] *= np.cumprod(flip, axis=0)

    old = rig.animation_data.action if rig.animation_data else None
    action = bpy.data.actions.new(f"{old.name if old is not None else rig.name} baked")
    action.use_fake_user = True
    curves = CurveStore(action, rig.name)
    for joint, bone in enumerate(BONE_NAMES):
        path = f'pose.bones["{bone}"]'
        for axis in range(4):
            curves.add_at(f"{path}.rotation_quaternion", axis, bone, frames, turns[:, joint, axis])
        for axis in range(3) if PARENTS[joint] < 0 else ():
            curves.add_at(f"{path}.location", axis, bone, frames, bases[:, joint, axis, 3])
    for name, column in zip(sliders, values.T, strict=True):
        curves.add_at(f'["{name}"]', 0, "Face", frames, column)
    assign_action(rig, action)
    _release(rig)
    return action


def _record(
    rig: bpy.types.Object, frames: Sequence[int], sliders: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Matrices [F, 55, 4, 4] in the armature's space and sliders [F, K]; goes back to the frame of before."""
    scene = bpy.context.scene
    before = scene.frame_current, scene.frame_subframe
    poses, values = [], []
    with clouds_at_rest():
        try:
            for frame in frames:
                scene.frame_set(frame)
                seen = rig.evaluated_get(bpy.context.evaluated_depsgraph_get())
                poses.append([np.array(seen.pose.bones[bone].matrix) for bone in BONE_NAMES])
                values.append([float(seen[name]) for name in sliders])
        finally:
            scene.frame_set(before[0], subframe=before[1])
    return np.array(poses, np.float64), np.array(values).reshape(len(poses), -1)


def _bases(rig: bpy.types.Object, poses: np.ndarray) -> np.ndarray:
    """Each bone's own channels as matrices [F, 55, 4, 4]."""
    rest = np.array([np.array(rig.data.bones[name].matrix_local) for name in BONE_NAMES], np.float64)
    bases = np.empty_like(poses)
    for joint, parent in enumerate(PARENTS):
        if parent < 0:
            bases[:, joint] = np.linalg.inv(rest[joint]) @ poses[:, joint]
        else:
            local = np.linalg.inv(rest[parent]) @ rest[joint]
            bases[:, joint] = np.linalg.inv(local) @ np.linalg.inv(poses[:, parent]) @ poses[:, joint]
    return bases


def _slider_names(rig: bpy.types.Object) -> Iterator[str]:
    """Sliders of the rig that show something themselves: the face and learned controls, no switches of controls."""
    switches = {LOOK_SWITCH, *(limb.switch for limb in LIMBS)}
    for name, value in rig.items():
        if isinstance(value, float) and name not in switches and not name.startswith("effigy_"):
            yield name


def _release(rig: bpy.types.Object) -> None:
    """Switch off whatever moves the bones beside their own channels."""
    release_limbs(rig)
    if LOOK_SWITCH in rig:
        rig[LOOK_SWITCH] = 0.0
    for side in "LR":
        hand = rig.pose.bones[f"hand.{side}"]
        for finger in CURL_FINGERS:
            if curl_property(finger) in hand:
                hand[curl_property(finger)] = 0.0
    rig.update_tag(refresh={"OBJECT", "DATA", "TIME"})
    scene = bpy.context.scene
    scene.frame_set(scene.frame_current, subframe=scene.frame_subframe)
