"""How the controls look: wire shapes, bone collections and colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, pi, sin

import bpy
from mathutils import Vector

from .curls import CURL_FINGERS, curl_bone
from .gaze import LOOK_TARGET
from .limbs import LIMBS

COLLECTIONS = ("Body", "Fingers", "Face", "IK", "Twist helpers", "Control helpers")
HIDDEN = ("IK", "Twist helpers", "Control helpers")
"""Not shown at first: IK until it is used, helpers always."""

Point = tuple[float, float, float]

_FACE_BONES = ("jaw", "eye.L", "eye.R", LOOK_TARGET)
_COLOURS: Mapping[str, Point] = {"L": (0.15, 0.55, 1.0), "R": (1.0, 0.25, 0.2), "": (1.0, 0.8, 0.2)}
"""Left blue, right red, middle yellow, display sRGB; own colours, for themes differ in what their sets look like."""
_SELECTED, _ACTIVE = (0.75, 0.95, 1.0), (1.0, 1.0, 1.0)

Lines = tuple[Sequence[Point], Sequence[tuple[int, int]]]


def sort_bones(data: bpy.types.Armature, twist_helpers: frozenset[str]) -> None:
    """Put the bones into the collections and colour them by side."""
    groups = {name: data.collections.new(name) for name in COLLECTIONS}
    helpers = {name for limb in LIMBS for name in limb.solvers}
    helpers |= {curl_bone(finger, side) for finger in CURL_FINGERS for side in "LR"}
    controls = {name for limb in LIMBS for name in limb.controls}
    for bone in data.bones:
        name = bone.name
        if name in twist_helpers:
            group = "Twist helpers"
        elif name in helpers:
            group = "Control helpers"
        elif name in controls:
            group = "IK"
        elif name in _FACE_BONES:
            group = "Face"
        else:
            group = "Fingers" if name.split("_")[0] in CURL_FINGERS else "Body"
        groups[group].assign(bone)
        bone.color.palette = "CUSTOM"
        bone.color.custom.normal = _COLOURS[name[-1] if name[-2:] in (".L", ".R") else ""]
        bone.color.custom.select, bone.color.custom.active = _SELECTED, _ACTIVE
    for name in HIDDEN:
        groups[name].is_visible = False


def shape_controls(ob: bpy.types.Object) -> None:
    """Give the controls their shapes; all other bones stay sticks, which are clear where bones lie close together."""
    for limb in LIMBS:
        _shape(ob, limb.target, "box", 0.5, (0.0, 0.5, 0.0))
        _shape(ob, limb.pole, "diamond", 0.5)
        for roll in limb.rolls:
            _shape(ob, roll, "ring", 0.28, (0.0, 0.5, 0.0))
    _shape(ob, LOOK_TARGET, "glasses", 1.0)
    _shape(ob, "pelvis", "ring", 1.9)
    _shape(ob, "head", "ring", 0.8, (0.0, 0.5, 0.0))


def _shape(
    ob: bpy.types.Object, name: str, shape: str, scale: float, place: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> None:
    """Draw a bone as a shape; size and place in lengths of the bone."""
    bone = ob.pose.bones[name]
    bone.custom_shape = _shape_object(shape)
    bone.custom_shape_scale_xyz = (scale,) * 3
    bone.custom_shape_translation = Vector(place) * bone.bone.length
    ob.data.bones[name].show_wire = True


def _shape_object(shape: str) -> bpy.types.Object:
    """The shape's object, shared by all avatars of the file. It is in no scene: only bones use it."""
    name = f"WGT-effigy {shape}"
    found = bpy.data.objects.get(name)
    if found is not None and found.library is None and found.type == "MESH":
        return found
    points, edges = _SHAPES[shape]
    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata(points, edges, [])
    return bpy.data.objects.new(name, mesh)


def _ring(centre: Point = (0.0, 0.0, 0.0), corners: int = 32) -> Lines:
    """A circle of radius 1 about y."""
    turns = [2 * pi * k / corners for k in range(corners)]
    points = [(centre[0] + cos(t), centre[1], centre[2] + sin(t)) for t in turns]
    return points, [(k, (k + 1) % corners) for k in range(corners)]


def _glasses() -> Lines:
    """Two circles side by side, seen along y."""
    (left, edges), (right, _) = _ring((-1.2, 0.0, 0.0)), _ring((1.2, 0.0, 0.0))
    count = len(left)
    bridge = [(0, count + count // 2)]
    return [*left, *right], [*edges, *((a + count, b + count) for a, b in edges), *bridge]


def _box() -> Lines:
    points = [(x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)]
    edges = [(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b) in (1, 2, 4)]
    return points, edges


def _diamond() -> Lines:
    points = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    return points, [(a, b) for a in range(6) for b in range(a + 1, 6) if a // 2 != b // 2]


_SHAPES: Mapping[str, Lines] = {"ring": _ring(), "glasses": _glasses(), "box": _box(), "diamond": _diamond()}
