"""Switching a limb between FK and IK without a visible change."""

from __future__ import annotations

from dataclasses import dataclass

import bpy
from mathutils import Matrix, Quaternion, Vector

from .limbs import Limb, pole_distance

_STRAIGHT = 1e-3
"""A joint that lies less than this share of the limb beside its line does not tell where the pole is."""

_CORRECTIONS = 3


@dataclass(frozen=True)
class LimbPose:
    """What is seen of a limb: matrices of its bones and of the bone that carries it, in the armature's space."""

    carrier: Matrix
    upper: Matrix
    lower: Matrix
    end: Matrix


def see_limb(rig: bpy.types.Object, limb: Limb) -> LimbPose:
    """The limb as it is evaluated now, constraints included."""
    bones = _evaluated(rig)
    carrier = bones[limb.upper].parent
    return LimbPose(*(bones[name].matrix.copy() for name in (carrier.name, limb.upper, limb.lower, limb.end)))


def snap_fk(rig: bpy.types.Object, limb: Limb, seen: LimbPose) -> None:
    """Turn the limb's own bones into the pose that was seen, and switch to them."""
    parent = seen.carrier
    for name, matrix in ((limb.upper, seen.upper), (limb.lower, seen.lower), (limb.end, seen.end)):
        bone = rig.pose.bones[name]
        turn = _local(bone, matrix, parent).to_quaternion()
        bone.rotation_quaternion = _near(turn, bone.rotation_quaternion)
        parent = matrix
    rig[limb.switch] = 0.0
    _update(rig)


def snap_ik(rig: bpy.types.Object, limb: Limb, seen: LimbPose) -> None:
    """Move the limb's controls so that the solver shows the pose that was seen, and switch to it.

    The pole stands where the joint points. What the limb is turned about itself besides is left to the rolls, which
    need the solver's answer first: a hinge cannot know it.
    """
    bones = rig.pose.bones
    rig[limb.switch] = 1.0
    for name in limb.rolls:
        bones[name].rotation_euler = (0.0, 0.0, 0.0)
    pole = _local(bones[limb.pole], Matrix.Translation(pole_place(rig, limb, seen)), None)
    bones[limb.pole].location = pole.translation
    target = bones[limb.target]
    basis = _local(target, seen.end, None)
    target.rotation_quaternion = _near(basis.to_quaternion(), target.rotation_quaternion)
    wanted = seen.end.translation
    goal = wanted.copy()
    for _ in range(_CORRECTIONS):
        target.location = _local(target, Matrix.Translation(goal), None).translation
        _update(rig)
        missed = wanted - _evaluated(rig)[limb.end].head
        if missed.length < 1e-5:
            break
        goal += missed
    solved = _evaluated(rig)
    for ring, matrix in zip(limb.rolls, (seen.upper, seen.lower), strict=True):
        between = solved[ring].matrix.to_quaternion().inverted() @ matrix.to_quaternion()
        bones[ring].rotation_euler = (0.0, between.to_swing_twist("Y")[1], 0.0)
    _update(rig)


def pole_place(rig: bpy.types.Object, limb: Limb, seen: LimbPose) -> Vector:
    """Where the pole of a limb seen in a pose stands, armature space."""
    bones = rig.data.bones
    upper_m, lower_m = bones[limb.upper].length, bones[limb.lower].length
    start, joint, end = (matrix.translation for matrix in (seen.upper, seen.lower, seen.end))
    line = (end - start).normalized()
    away = (joint - start) - line * (joint - start).dot(line)
    if away.length < _STRAIGHT * (upper_m + lower_m):
        away = seen.upper.to_3x3() @ Vector((0.0, 0.0, float(limb.side_of_pole)))
        away -= line * away.dot(line)
    return joint + away.normalized() * pole_distance(upper_m, lower_m)


def key_limb(rig: bpy.types.Object, limb: Limb, ik: bool) -> None:
    """Key the limb's switch and the channels that it switches to, at the current frame."""
    rig.keyframe_insert(f'["{limb.switch}"]', group="IK")
    if not ik:
        for name in (limb.upper, limb.lower, limb.end):
            rig.pose.bones[name].keyframe_insert("rotation_quaternion", group=name)
        return
    bones = rig.pose.bones
    bones[limb.target].keyframe_insert("location", group=limb.target)
    bones[limb.target].keyframe_insert("rotation_quaternion", group=limb.target)
    bones[limb.pole].keyframe_insert("location", group=limb.pole)
    for name in limb.rolls:
        bones[name].keyframe_insert("rotation_euler", index=1, group=name)


def _local(bone: bpy.types.PoseBone, matrix: Matrix, parent: Matrix | None) -> Matrix:
    """A bone's own transform for a matrix in the armature's space, its parent being at `parent`."""
    rest = bone.bone
    if parent is None:
        return rest.matrix_local.inverted() @ matrix
    return rest.convert_local_to_pose(
        matrix, rest.matrix_local, parent_matrix=parent, parent_matrix_local=bone.parent.bone.matrix_local, invert=True
    )


def _near(turn: Quaternion, other: Quaternion) -> Quaternion:
    """The same turn with the sign that keeps curves smooth."""
    return -turn if turn.dot(other) < 0 else turn


def _update(rig: bpy.types.Object) -> None:
    rig.update_tag()
    bpy.context.view_layer.update()


def _evaluated(rig: bpy.types.Object) -> bpy.types.bpy_prop_collection:
    return rig.evaluated_get(bpy.context.evaluated_depsgraph_get()).pose.bones
