"""The mirror image of a pose: bones, curls, IK switches, face and sliders that have sides.

Blender's own flipped paste does bones and their properties. The switches, the face and the sliders are properties of
the armature object, which it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator

import bpy

from ..shared.skeleton import BONE_NAMES
from .controls import mirrored_sliders
from .curls import CURL_FINGERS, curl_property
from .face import MIRRORED_ACTIONS
from .gaze import LOOK_TARGET
from .limbs import LIMBS


def mirrored_bone(name: str) -> str:
    """The bone of the other side; the same one in the middle."""
    return name[:-1] + {"L": "R", "R": "L"}[name[-1]] if name[-2:] in (".L", ".R") else name


def mirror_pose(rig: bpy.types.Object) -> list[tuple[bpy.types.bpy_struct, str]]:
    """Show the mirror image of the pose; returns what it changed as owners and paths, for keys."""
    changed: list[tuple[bpy.types.bpy_struct, str]] = []
    bones = rig.pose.bones
    names = [name for name in (*BONE_NAMES, *_control_bones()) if name in bones]
    poses = {
        name: (bones[name].location.copy(), bones[name].rotation_quaternion.copy(), tuple(bones[name].rotation_euler))
        for name in names
    }
    for name in names:
        bone = bones[name]
        location, (w, x, y, z), (a, b, c) = poses[mirrored_bone(name)]
        # Rest axes of the two sides are mirrored across X, so this is the mirror image of any transform.
        bone.location = (-location.x, location.y, location.z)
        bone.rotation_quaternion = (w, x, -y, -z)
        bone.rotation_euler = (a, -b, -c)
        turn = "rotation_quaternion" if bone.rotation_mode == "QUATERNION" else "rotation_euler"
        changed += [(bone, turn)] if bone.lock_location[0] else [(bone, turn), (bone, "location")]
    hands = bones["hand.L"], bones["hand.R"]
    for name in map(curl_property, CURL_FINGERS):
        if all(name in hand for hand in hands):
            hands[0][name], hands[1][name] = hands[1][name], hands[0][name]
            changed += [(hand, f'["{name}"]') for hand in hands]
    switches = ((limb.switch, mirrored_bone(limb.switch)) for limb in LIMBS if limb.name.endswith(".L"))
    changed += [(rig, path) for pair in switches for path in _exchange(rig, *pair)]
    return changed + mirror_face(rig)


def mirror_face(rig: bpy.types.Object) -> list[tuple[bpy.types.bpy_struct, str]]:
    """Exchange left and right of the facial actions and of sliders with sides; returns what it changed."""
    pairs = (*MIRRORED_ACTIONS, *mirrored_sliders(rig))
    changed: list[tuple[bpy.types.bpy_struct, str]] = [(rig, path) for pair in pairs for path in _exchange(rig, *pair)]
    rig.update_tag()
    return changed


def _control_bones() -> Iterator[str]:
    for limb in LIMBS:
        yield from limb.controls
    yield LOOK_TARGET


def _exchange(rig: bpy.types.Object, left: str, right: str) -> list[str]:
    if left not in rig or right not in rig:
        return []
    rig[left], rig[right] = rig[right], rig[left]
    return [f'["{left}"]', f'["{right}"]']
