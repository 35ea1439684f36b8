"""FK and IK of an avatar's limbs, and its face."""

from __future__ import annotations

from collections.abc import Iterable

import bpy

from ..rig.controls import reset_sliders, slider_groups
from ..rig.face import FACE_REGIONS, region_actions
from ..rig.limbs import LIMBS, Limb
from ..rig.mirror import mirror_face, mirror_pose
from ..rig.snap import key_limb, see_limb, snap_fk, snap_ik
from .animate import avatar_rig

_LIMB_ITEMS = [
    ("ALL", "All Limbs", "Both arms and both legs"),
    *((limb.name, f"{'Left' if limb.name[-1] == 'L' else 'Right'} {limb.name[:-2].title()}", "") for limb in LIMBS),
]
_REGION_ITEMS = [("ALL", "Whole Face", "All facial actions"), *((name, name, "") for name in FACE_REGIONS)]


def has_limbs(rig: bpy.types.Object | None) -> bool:
    """Whether an avatar's armature has the IK controls; those of early files have not."""
    return rig is not None and all(limb.switch in rig for limb in LIMBS)


class _Snap:
    """What both directions share; annotations only, as Blender's mix-ins want them."""

    limb: bpy.props.EnumProperty(name="Limb", items=_LIMB_ITEMS)  # pyright: ignore[reportInvalidTypeForm]
    over_frames: bpy.props.BoolProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="All Frames", description="Key every frame of the scene instead of changing the current one", default=False
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs an avatar with limbs that switch."""
        return has_limbs(avatar_rig(context))

    def snap(self, context: bpy.types.Context, ik: bool) -> set[str]:
        """Switch the chosen limbs to IK or FK; what is seen stays."""
        rig = avatar_rig(context)
        assert rig is not None
        limbs = [limb for limb in LIMBS if self.limb in ("ALL", limb.name)]
        if ik:
            rig.data.collections_all["IK"].is_visible = True
        if self.over_frames:
            _snap_frames(rig, limbs, ik, context.scene)
            return {"FINISHED"}
        keyed = context.scene.tool_settings.use_keyframe_insert_auto
        _snap_limbs(rig, limbs, ik, [limb for limb in limbs if keyed or _is_animated(rig, f'["{limb.switch}"]')])
        return {"FINISHED"}


class EFFIGY_OT_snap_ik(_Snap, bpy.types.Operator):
    """Switch limbs to IK: the controls go to where hands, feet, elbows and knees are seen now."""

    bl_idname = "effigy.snap_ik"
    bl_label = "Snap to IK"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Keeps the visible pose; keys it with auto keying, or if the switch has keys."""
        return self.snap(context, True)


class EFFIGY_OT_snap_fk(_Snap, bpy.types.Operator):
    """Switch limbs to FK: their bones are turned to where they are seen now."""

    bl_idname = "effigy.snap_fk"
    bl_label = "Snap to FK"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Keeps the visible pose; keys it with auto keying, or if the switch has keys."""
        return self.snap(context, False)


class EFFIGY_OT_reset_face(bpy.types.Operator):
    """Set the facial actions of a region to zero."""

    bl_idname = "effigy.reset_face"
    bl_label = "Reset Face"
    bl_options = {"REGISTER", "UNDO"}

    region: bpy.props.EnumProperty(name="Region", items=_REGION_ITEMS)  # pyright: ignore[reportInvalidTypeForm]

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs an avatar."""
        return avatar_rig(context) is not None

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Zero, keyed with auto keying."""
        rig = avatar_rig(context)
        assert rig is not None
        auto = context.scene.tool_settings.use_keyframe_insert_auto
        for name in region_actions(self.region):
            if name not in rig:
                continue
            rig[name] = 0.0
            if auto:
                rig.keyframe_insert(f'["{name}"]', group="Face")
        rig.update_tag()
        return {"FINISHED"}


class EFFIGY_OT_mirror_pose(bpy.types.Operator):
    """Show the mirror image of the pose: body, fingers, IK and its switches, face and sliders that have sides."""

    bl_idname = "effigy.mirror_pose"
    bl_label = "Mirror Pose"
    bl_options = {"REGISTER", "UNDO"}

    only_face: bpy.props.BoolProperty(name="Face Only", default=False)  # pyright: ignore[reportInvalidTypeForm]

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs an avatar."""
        return avatar_rig(context) is not None

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Exchange the sides; keyed with auto keying."""
        rig = avatar_rig(context)
        assert rig is not None
        changed = mirror_face(rig) if self.only_face else mirror_pose(rig)
        if context.scene.tool_settings.use_keyframe_insert_auto:
            for owner, path in changed:
                owner.keyframe_insert(path, group="Face" if owner == rig else owner.name)
        rig.update_tag()
        return {"FINISHED"}


class EFFIGY_OT_reset_controls(bpy.types.Operator):
    """Set the avatar's learned controls to their defaults."""

    bl_idname = "effigy.reset_controls"
    bl_label = "Reset Controls"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs an avatar with sliders."""
        rig = avatar_rig(context)
        return rig is not None and bool(slider_groups(rig))

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Defaults, keyed with auto keying."""
        rig = avatar_rig(context)
        assert rig is not None
        names = reset_sliders(rig)
        if context.scene.tool_settings.use_keyframe_insert_auto:
            for name in names:
                rig.keyframe_insert(f'["{name}"]', group="Controls")
        return {"FINISHED"}


def _snap_limbs(rig: bpy.types.Object, limbs: Iterable[Limb], ik: bool, keyed: Iterable[Limb]) -> None:
    for limb in limbs:
        (snap_ik if ik else snap_fk)(rig, limb, see_limb(rig, limb))
    for limb in keyed:
        key_limb(rig, limb, ik)


def _snap_frames(rig: bpy.types.Object, limbs: list[Limb], ik: bool, scene: bpy.types.Scene) -> None:
    """Look at all frames first: keys that are set change what later frames show."""
    before = scene.frame_current
    frames = range(scene.frame_start, scene.frame_end + 1)
    seen = []
    for frame in frames:
        scene.frame_set(frame)
        seen.append([see_limb(rig, limb) for limb in limbs])
    for frame, poses in zip(frames, seen, strict=True):
        scene.frame_set(frame)
        for limb, pose in zip(limbs, poses, strict=True):
            (snap_ik if ik else snap_fk)(rig, limb, pose)
            key_limb(rig, limb, ik)
    scene.frame_set(before)


def _is_animated(rig: bpy.types.Object, path: str) -> bool:
    """Whether the active action has a curve for a property."""
    data = rig.animation_data
    if data is None or data.action is None:
        return False
    return any(curve.data_path == path for curve in _curves(data))


def _curves(data: bpy.types.AnimData) -> Iterable[bpy.types.FCurve]:
    """Curves that play on the owner: of its slot from Blender 4.4, of the action below."""
    slot = getattr(data, "action_slot", None)
    if slot is None:
        return getattr(data.action, "fcurves", ())
    bags = (strip.channelbag(slot) for layer in data.action.layers for strip in layer.strips)
    return [curve for bag in bags if bag is not None for curve in bag.fcurves]
