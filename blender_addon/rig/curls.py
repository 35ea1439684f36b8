"""Curl of the fingers, one property per finger on its hand's bone, added to whatever the fingers' own keys say.

The property turns a helper bone about the finger's bending axis, and the finger's three bones add the helper's turn
to their own, each its share. Being on the hand's bone, the properties are copied and mirrored with poses and are part
of pose assets.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import radians

import bpy
from mathutils import Matrix, Vector

from .drivers import drive

CURL_FINGERS = ("thumb", "index", "middle", "ring", "pinky")
CURL_RANGE = (-0.2, 1.0)
"""From bent back a little to a fist."""

_FULL_TURN = radians(95.0)
_SHARES: Mapping[str, tuple[float, float, float]] = {
    "thumb": (0.25, 0.42, 0.65),
    "index": (0.75, 1.0, 0.65),
    "middle": (0.82, 1.0, 0.68),
    "ring": (0.88, 1.0, 0.68),
    "pinky": (0.9, 0.95, 0.65),
}
"""Shares of the full turn that the three bones take at curl 1: a loose fist, by eye."""

_THUMB_REACH_M = 0.03
"""A bent thumb lies over the bent fingers: this far in front of the palm."""


def curl_property(finger: str) -> str:
    """Name of the property on the hand's bone."""
    return f"curl_{finger}"


def curl_bone(finger: str, side: str) -> str:
    """Name of the helper bone."""
    return f"curl_{finger}.{side}"


def build_curl_bones(bones: bpy.types.ArmatureEditBones) -> None:
    """Add a helper per finger, its x axis the bending axis; the armature is in edit mode."""
    for side in "LR":
        palm = _palm(bones, side)
        for finger in CURL_FINGERS:
            first, second, last = (bones[f"{finger}_0{k}.{side}"] for k in (1, 2, 3))
            along = (last.head - first.head).normalized()
            towards = palm
            if finger == "thumb":
                towards = bones[f"ring_01.{side}"].head + palm * _THUMB_REACH_M - second.head
                along = (last.tail - second.head).normalized()
            axis = along.cross(towards).normalized()
            helper = bones.new(curl_bone(finger, side))
            helper.length = first.length
            turn = Matrix((axis, along, axis.cross(along))).transposed()
            helper.matrix = Matrix.Translation(first.head) @ turn.to_4x4()
            helper.parent = bones[f"hand.{side}"]
            helper.use_deform = False


def _palm(bones: bpy.types.ArmatureEditBones, side: str) -> Vector:
    """Direction that the palm faces."""
    knuckles = bones[f"pinky_01.{side}"].head - bones[f"index_01.{side}"].head
    along = bones[f"middle_01.{side}"].head - bones[f"hand.{side}"].head
    palm = knuckles.cross(along).normalized()
    return palm if side == "L" else -palm


def add_curl_properties(ob: bpy.types.Object) -> None:
    """One property per finger on each hand's bone; before the first evaluation."""
    for side in "LR":
        hand = ob.pose.bones[f"hand.{side}"]
        for finger in CURL_FINGERS:
            name = curl_property(finger)
            hand[name] = 0.0
            low, high = CURL_RANGE
            hand.id_properties_ui(name).update(
                min=low, max=high, description=f"Bend the {finger} finger: 0 as it is keyed, 1 a fist"
            )
            hand.property_overridable_library_set(f'["{name}"]', True)


def constrain_fingers(ob: bpy.types.Object) -> None:
    """The helpers' drivers and the fingers' constraints; after the first evaluation."""
    for side in "LR":
        for finger in CURL_FINGERS:
            helper = ob.pose.bones[curl_bone(finger, side)]
            helper.rotation_mode = "XYZ"
            helper.lock_location = helper.lock_rotation = helper.lock_scale = (True,) * 3
            path = f'pose.bones["hand.{side}"]["{curl_property(finger)}"]'
            drive(helper, "rotation_euler", ob, path, _FULL_TURN, index=0)
            for k, share in enumerate(_SHARES[finger], start=1):
                copy = ob.pose.bones[f"{finger}_0{k}.{side}"].constraints.new("COPY_ROTATION")
                copy.name = "Effigy curl"
                copy.target, copy.subtarget = ob, helper.name
                copy.mix_mode = "AFTER"
                copy.target_space, copy.owner_space = "LOCAL_OWNER_ORIENT", "LOCAL"
                copy.influence = share
