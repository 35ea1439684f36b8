"""Eyes that look at a target, with a switch."""

from __future__ import annotations

from math import radians

import bpy
from mathutils import Vector

from .drivers import drive

LOOK_TARGET = "look_at"
LOOK_SWITCH = "look_at"
"""Property of the armature object: 0 the eyes are posed by their bones, 1 they look at the target."""

_DISTANCE_M = 1.0
_LIMIT = radians(35.0)
"""About how far human eyes turn."""


def build_look_target(bones: bpy.types.ArmatureEditBones) -> None:
    """Add the target in front of the face; the armature is in edit mode."""
    middle = (bones["eye.L"].head + bones["eye.R"].head) / 2
    target = bones.new(LOOK_TARGET)
    target.head = Vector((0.0, middle.y - _DISTANCE_M, middle.z))
    target.tail = target.head + Vector((0.0, -0.06, 0.0))
    target.align_roll(Vector((0.0, 0.0, 1.0)))
    target.use_deform = False


def add_look_property(ob: bpy.types.Object) -> None:
    """The switch; before the first evaluation."""
    ob[LOOK_SWITCH] = 0.0
    ob.id_properties_ui(LOOK_SWITCH).update(min=0.0, max=1.0, description="How much the eyes look at the target")
    ob.property_overridable_library_set(f'["{LOOK_SWITCH}"]', True)


def constrain_eyes(ob: bpy.types.Object) -> None:
    """The eyes' constraints and their drivers; after the first evaluation."""
    target = ob.pose.bones[LOOK_TARGET]
    target.lock_scale = target.lock_rotation = (True,) * 3
    target.lock_rotation_w = True
    for side in "LR":
        constraints = ob.pose.bones[f"eye.{side}"].constraints
        track = constraints.new("DAMPED_TRACK")
        track.target, track.subtarget, track.track_axis = ob, LOOK_TARGET, "TRACK_Y"
        limit = constraints.new("LIMIT_ROTATION")
        limit.owner_space = "LOCAL"
        limit.use_limit_x = limit.use_limit_z = True
        limit.min_x = limit.min_z = -_LIMIT
        limit.max_x = limit.max_z = _LIMIT
        for constraint in (track, limit):
            constraint.name = "Effigy look"
            drive(constraint, "influence", ob, f'["{LOOK_SWITCH}"]')
