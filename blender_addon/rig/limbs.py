"""IK for arms and legs beside the FK bones: a solver chain, a target, a pole and two roll rings per limb.

The 55 bones are never part of an IK chain. A pair of helper bones, bent a little at rest so that the joint knows which
way it bends even where the body's own limb is straight, is solved towards the target; the limb's bones copy the
rotations of its roll rings. The share of the copies is the limb's switch, a property of the armature object, 0 (FK) to
1 (IK); at 0 the copies and the solver are skipped, and actions play as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import pi, radians

import bpy
from mathutils import Matrix, Vector

from .drivers import drive

_PRE_BEND = radians(8.0)
"""Bend of each half of the solver chain at rest; any small angle does."""

_BENT = 0.01
"""A joint this share of the limb beside its line shows where it points."""

_FRONT, _BACK, _UP = Vector((0.0, -1.0, 0.0)), Vector((0.0, 1.0, 0.0)), Vector((0.0, 0.0, 1.0))
"""Directions of the armature's space: the body faces -Y."""

_ITERATIONS = 300


@dataclass(frozen=True)
class Limb:
    """Bone names of one limb.

    Attributes:
        name: `arm.L`, `leg.R`, and so on.
        upper: Upper arm or thigh.
        lower: Forearm or shin.
        end: Hand or foot.
        joint: What the pole is named after, elbow or knee.
    """

    name: str
    upper: str
    lower: str
    end: str
    joint: str

    @property
    def switch(self) -> str:
        """Property of the armature object: 0 FK to 1 IK."""
        return f"ik_{self.name}"

    @property
    def target(self) -> str:
        """Control that the hand or foot follows."""
        return _with_word(self.end, "ik")

    @property
    def pole(self) -> str:
        """Control that the elbow or knee points to."""
        return _with_word(self.joint, "pole")

    @property
    def solvers(self) -> tuple[str, str]:
        """Helper bones that the solver turns."""
        return _with_word(self.upper, "ik"), _with_word(self.lower, "ik")

    @property
    def rolls(self) -> tuple[str, str]:
        """Rings that turn the limb's two bones about themselves."""
        return _with_word(self.upper, "roll"), _with_word(self.lower, "roll")

    @property
    def controls(self) -> tuple[str, ...]:
        """What the artist moves."""
        return self.target, self.pole, *self.rolls

    @property
    def side_of_pole(self) -> int:
        """1 where the joint points along the bones' z axes, to the front (knee); -1 against them (elbow)."""
        return 1 if self.joint.startswith("knee") else -1


def _with_word(bone: str, word: str) -> str:
    stem, side = bone.rsplit(".", 1)
    return f"{stem}_{word}.{side}"


LIMBS: tuple[Limb, ...] = tuple(
    Limb(f"{name}.{side}", *(f"{bone}.{side}" for bone in bones))
    for name, bones in (
        ("arm", ("upper_arm", "forearm", "hand", "elbow")),
        ("leg", ("thigh", "shin", "foot", "knee")),
    )
    for side in "LR"
)


def build_limb_bones(bones: bpy.types.ArmatureEditBones) -> None:
    """Add the IK bones of all limbs; the armature is in edit mode."""
    for limb in LIMBS:
        _build_limb(bones, limb)


def _build_limb(bones: bpy.types.ArmatureEditBones, limb: Limb) -> None:
    upper, lower, end = (bones[name] for name in (limb.upper, limb.lower, limb.end))
    away = _pole_direction(limb, upper, lower)
    # The hinge of elbow or knee; positive turns about it carry the bones' directions towards the pole.
    hinge = upper.y_axis.cross(away).normalized()
    frame = _frame(upper.y_axis, hinge * limb.side_of_pole)
    parent, head = upper.parent, upper.head
    parts = zip((upper, lower), limb.solvers, limb.rolls, (_PRE_BEND, -_PRE_BEND), strict=True)
    for bone, solver_name, roll_name, bend in parts:
        turned = Matrix.Rotation(bend, 3, hinge) @ frame
        solver = _add(bones, solver_name, head, turned.col[1], turned.col[2], bone.length)
        solver.parent = parent
        # Solved to where the limb rests, the ring has the axes of the limb's bone.
        ring = turned @ _frame(bone.y_axis, hinge * limb.side_of_pole).inverted() @ bone.matrix.to_3x3()
        _add(bones, roll_name, head, ring.col[1], ring.col[2], bone.length).parent = solver
        parent, head = solver, solver.tail
    _add(bones, limb.target, end.head, end.y_axis, end.z_axis, end.length)
    place = lower.head + away * pole_distance(upper.length, lower.length)
    _add(bones, limb.pole, place, _FRONT if limb.side_of_pole > 0 else _BACK, _UP, 0.06)


def _frame(y_axis: Vector, hinge: Vector) -> Matrix:
    """Axes of a bone along `y_axis`, its x axis as near to `hinge` as it can be."""
    x = (hinge - y_axis * hinge.dot(y_axis)).normalized()
    return Matrix((x, y_axis, x.cross(y_axis))).transposed()


def _pole_direction(limb: Limb, upper: bpy.types.EditBone, lower: bpy.types.EditBone) -> Vector:
    """Where the joint points at rest; to the front or back where the limb is all but straight."""
    line = (lower.tail - upper.head).normalized()
    away = (lower.head - upper.head) - line * (lower.head - upper.head).dot(line)
    expected = _FRONT if limb.side_of_pole > 0 else _BACK
    bent = away.length > _BENT * (upper.length + lower.length) and away.dot(expected) > 0.5 * away.length
    return away.normalized() if bent else expected


def pole_distance(upper_m: float, lower_m: float) -> float:
    """How far from the joint a pole stands, metres: half the limb, far enough that it rarely comes near the line."""
    return 0.5 * (upper_m + lower_m)


def _add(
    bones: bpy.types.ArmatureEditBones, name: str, head: Vector, along: Vector, z_axis: Vector, length: float
) -> bpy.types.EditBone:
    bone = bones.new(name)
    bone.head, bone.tail = head, head + along.normalized() * length
    bone.align_roll(z_axis)
    bone.use_deform = False
    return bone


def add_limb_properties(ob: bpy.types.Object) -> None:
    """The switches; before the first evaluation."""
    for limb in LIMBS:
        ob[limb.switch] = 0.0
        ob.id_properties_ui(limb.switch).update(
            min=0.0, max=1.0, description=f"0: {limb.name} is posed by its bones (FK), 1: by its target (IK)"
        )
        ob.property_overridable_library_set(f'["{limb.switch}"]', True)


def release_limbs(ob: bpy.types.Object) -> None:
    """Switch all limbs of an armature to FK, so that an action plays as it is."""
    for limb in LIMBS:
        if limb.switch in ob:
            ob[limb.switch] = 0.0


def constrain_limbs(ob: bpy.types.Object) -> None:
    """The solver, the copies and the drivers of their influence; after the first evaluation."""
    for limb in LIMBS:
        _lock_limb(ob, limb)
        solver = ob.pose.bones[limb.solvers[1]].constraints.new("IK")
        solver.name = "Effigy IK"
        solver.target = solver.pole_target = ob
        solver.subtarget, solver.pole_subtarget = limb.target, limb.pole
        solver.chain_count, solver.use_stretch, solver.iterations = 2, False, _ITERATIONS
        # The pole turns the axis cos(angle) x + sin(angle) z of the chain's root to itself.
        solver.pole_angle = limb.side_of_pole * pi / 2
        for constraint in (solver, *_copies(ob, limb)):
            drive(constraint, "influence", ob, f'["{limb.switch}"]')


def _copies(ob: bpy.types.Object, limb: Limb) -> Iterator[bpy.types.Constraint]:
    for bone, source in zip((limb.upper, limb.lower, limb.end), (*limb.rolls, limb.target), strict=True):
        copy = ob.pose.bones[bone].constraints.new("COPY_ROTATION")
        copy.name = "Effigy IK"
        copy.target, copy.subtarget = ob, source
        copy.target_space = copy.owner_space = "POSE"
        yield copy


def _lock_limb(ob: bpy.types.Object, limb: Limb) -> None:
    """What cannot be used is locked: an elbow is a hinge, rings roll, poles only move."""
    bones = ob.pose.bones
    for name in (*limb.solvers, *limb.rolls, *limb.controls):
        bones[name].lock_scale = (True,) * 3
    hinge = bones[limb.solvers[1]]
    hinge.lock_ik_y = hinge.lock_ik_z = True
    for name in limb.rolls:
        bones[name].rotation_mode = "YXZ"
        bones[name].lock_location = (True,) * 3
        bones[name].lock_rotation = (True, False, True)
    bones[limb.pole].lock_rotation = (True,) * 3
    bones[limb.pole].lock_rotation_w = True
