"""The armature: 55 deform bones with SMPL-X's hierarchy, twist helpers, and the controls that move them.

The controls (limbs.py, curls.py, gaze.py) act through constraints whose drivers are free of expressions; with all
switches at 0 the 55 bones move by their own channels alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import bpy
import numpy as np
from mathutils import Matrix

from ..shared.axes import BODY_TO_BLENDER, blender_to_body_points, body_to_blender_points
from ..shared.bone_names import bone_name
from ..shared.skeleton import BONE_NAMES, JOINT_NAMES, PARENTS, BoneRest, bone_rest
from .controls import add_control_properties
from .curls import add_curl_properties, build_curl_bones, constrain_fingers
from .drivers import scale_driver
from .gaze import add_look_property, build_look_target, constrain_eyes
from .limbs import add_limb_properties, build_limb_bones, constrain_limbs
from .shapes import shape_controls, sort_bones

if TYPE_CHECKING:
    from ..shared.avatar import Avatar


@dataclass(frozen=True)
class TwistBone:
    """A helper bone that takes a share of another bone's roll.

    Attributes:
        name: Bone name with Blender's side suffix.
        parent: Bone that carries the helper; the helper lies in it.
        source: Bone whose local twist is shared.
        factor: Share of the twist, negative to undo it.
    """

    name: str
    parent: str
    source: str
    factor: float


def twist_bones(avatar: Avatar) -> tuple[TwistBone, ...]:
    """The twist helpers of a bundle by bone names."""
    return tuple(
        TwistBone(twist_bone_name(str(name)), BONE_NAMES[int(parent)], BONE_NAMES[int(source)], float(factor))
        for name, parent, source, factor in zip(
            avatar.twist_names, avatar.twist_parents, avatar.twist_sources, avatar.twist_factors, strict=True
        )
    )


def twist_bone_name(name: str) -> str:
    """`left_forearm_twist` as `forearm_twist.L`; names without a side stay."""
    side, _, rest = name.partition("_")
    return f"{rest}.{side[0].upper()}" if side in ("left", "right") else name


def deform_bone_names(avatar: Avatar) -> tuple[str, ...]:
    """Bone of each skin weight column: the 55 joints, then the twist helpers."""
    return (*BONE_NAMES, *(bone.name for bone in twist_bones(avatar)))


def create_armature(name: str, avatar: Avatar, collection: bpy.types.Collection) -> bpy.types.Object:
    """An armature object in the bundle's T-pose, with its controls and their drivers; it becomes the active object.

    Args:
        name: Of the object.
        avatar: The bundle.
        collection: Where the object is linked; must be visible in the view layer.
    """
    data = bpy.data.armatures.new(name)
    ob = bpy.data.objects.new(name, data)
    collection.objects.link(ob)
    bpy.context.view_layer.objects.active = ob
    ob.select_set(True)
    _build_bones(ob, avatar)
    sort_bones(data, frozenset(bone.name for bone in twist_bones(avatar)))
    _describe(ob, avatar)
    _add_face_properties(ob, avatar)
    add_limb_properties(ob)
    add_curl_properties(ob)
    add_look_property(ob)
    if avatar.controls is not None:
        add_control_properties(ob, avatar.controls)
    # Properties made after the first evaluation are unknown to its copy, and a driver that meets them stays invalid
    # for good.
    ob.update_tag()
    bpy.context.view_layer.update()
    _prepare_pose(ob, twist_bones(avatar))
    for bone in twist_bones(avatar):
        _add_twist_driver(ob, bone)
    constrain_limbs(ob)
    constrain_fingers(ob)
    constrain_eyes(ob)
    shape_controls(ob)
    data.display_type = "STICK"
    ob.show_in_front = True
    return ob


def bone_matrices(armature: bpy.types.Object) -> np.ndarray:
    """Rest axes of the 55 bones as Blender holds them, [55, 3, 3], columns x, y, z in the armature's space."""
    bones = armature.data.bones
    return np.array([np.array(bones[name].matrix_local)[:3, :3] for name in BONE_NAMES])


def rest_joints(armature: bpy.types.Object) -> np.ndarray:
    """Joints of the rest pose [55, 3], body frame, metres."""
    heads = np.array([armature.data.bones[name].head_local for name in BONE_NAMES])
    return blender_to_body_points(heads)


def _build_bones(ob: bpy.types.Object, avatar: Avatar) -> None:
    rest = bone_rest(avatar.joints_m)
    bpy.ops.object.mode_set(mode="EDIT")
    try:
        bones = ob.data.edit_bones
        for joint, name in enumerate(BONE_NAMES):
            bone = bones.new(name)
            bone.length = float(np.linalg.norm(rest.tails_m[joint] - rest.heads_m[joint]))
            bone.matrix = _edit_matrix(rest, joint)
            if PARENTS[joint] >= 0:
                bone.parent = bones[BONE_NAMES[PARENTS[joint]]]
        for helper in twist_bones(avatar):
            bone = bones.new(helper.name)
            bone.length = bones[helper.parent].length * 0.5
            bone.matrix = bones[helper.parent].matrix.copy()
            bone.parent = bones[helper.parent]
        build_limb_bones(bones)
        build_curl_bones(bones)
        build_look_target(bones)
    finally:
        bpy.ops.object.mode_set(mode="OBJECT")


def _edit_matrix(rest: BoneRest, joint: int) -> Matrix:
    matrix = np.eye(4)
    matrix[:3, :3] = BODY_TO_BLENDER @ rest.matrices[joint]
    matrix[:3, 3] = body_to_blender_points(rest.heads_m[joint])
    return Matrix(matrix.tolist())


def _describe(ob: bpy.types.Object, avatar: Avatar) -> None:
    """What another program or a later version needs to know about the rig."""
    ob["effigy_body_model"] = str(avatar.body_model)
    ob["effigy_rest_pose"] = "T-pose"
    ob["effigy_betas"] = [float(x) for x in np.ravel(avatar.betas)]
    for joint, name in zip(JOINT_NAMES, BONE_NAMES, strict=True):
        bone = ob.data.bones[name]
        bone["smplx_joint"] = joint
        for convention in ("mixamo", "rigify", "vrm", "unreal"):
            other = bone_name(joint, convention)
            if other:
                bone[f"{convention}_bone"] = other


def _add_face_properties(ob: bpy.types.Object, avatar: Avatar) -> None:
    """One property per facial action on the armature: body and face are animated by one action."""
    for key in avatar.shape_key_names:
        name = str(key)
        ob[name] = 0.0
        ob.id_properties_ui(name).update(
            min=0.0, max=1.5, soft_min=0.0, soft_max=1.0, description=f"Facial action {name}"
        )
        ob.property_overridable_library_set(f'["{name}"]', True)


def _prepare_pose(ob: bpy.types.Object, helpers: tuple[TwistBone, ...]) -> None:
    for bone in ob.pose.bones:
        bone.rotation_mode = "QUATERNION"
        bone.lock_location = (bone.parent is not None,) * 3
        bone.lock_scale = (True,) * 3
    for helper in helpers:
        bone = ob.pose.bones[helper.name]
        bone.rotation_mode = "XYZ"
        bone.lock_rotation = (True,) * 3


def _add_twist_driver(ob: bpy.types.Object, helper: TwistBone) -> None:
    """Helper's rotation about its own y = factor * twist of the source's local rotation; no Python expression.

    The source's y axis is the bone's direction (for the hand: the forearm's), so this is the swing-twist
    decomposition about the axis of the bone that carries the helper.
    """
    path = f'pose.bones["{helper.name}"].rotation_euler'
    curve = ob.driver_add(path, 1)
    driver = curve.driver
    driver.type = "AVERAGE"
    variable = driver.variables.new()
    variable.name = "twist"
    variable.type = "TRANSFORMS"
    target = variable.targets[0]
    target.id = ob
    target.bone_target = helper.source
    target.transform_type = "ROT_Y"
    target.rotation_mode = "SWING_TWIST_Y"
    target.transform_space = "LOCAL_SPACE"
    scale_driver(curve, helper.factor)
