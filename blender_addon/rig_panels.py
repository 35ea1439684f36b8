"""Panels of the rig: limbs, fingers, gaze, learned controls and face of the active avatar."""

from __future__ import annotations

import bpy

from .operators.animate import avatar_rig
from .operators.rig import has_limbs
from .rig.controls import slider_groups, slider_label
from .rig.curls import CURL_FINGERS, curl_property
from .rig.face import FACE_REGIONS, PHOTO_SHAPE, region_rows
from .rig.gaze import LOOK_SWITCH
from .rig.limbs import LIMBS

_SHOWN_COLLECTIONS = ("Body", "Fingers", "Face", "IK")


class _Sidebar:
    """Where the panels are."""

    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Effigy"
    bl_parent_id = "EFFIGY_PT_main"
    bl_options = {"DEFAULT_CLOSED"}


class EFFIGY_PT_rig(_Sidebar, bpy.types.Panel):
    """Limbs, fingers and gaze."""

    bl_label = "Rig"
    bl_idname = "EFFIGY_PT_rig"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Only for an avatar with controls."""
        return has_limbs(avatar_rig(context))

    def draw(self, context: bpy.types.Context) -> None:
        """What is shown, FK and IK per limb, gaze, finger curls."""
        rig, layout = avatar_rig(context), self.layout
        assert rig is not None
        row = layout.row(align=True)
        for name in _SHOWN_COLLECTIONS:
            collection = rig.data.collections_all.get(name)
            if collection is not None:
                row.prop(collection, "is_visible", text=name, toggle=True)
        column = layout.column(align=True)
        for limb in LIMBS:
            row = column.split(factor=0.55, align=True)
            row.prop(rig, f'["{limb.switch}"]', text=f"{limb.name[:-2].title()} {limb.name[-1]} IK", slider=True)
            row = row.row(align=True)
            row.operator("effigy.snap_fk", text="To FK").limb = limb.name
            row.operator("effigy.snap_ik", text="To IK").limb = limb.name
        row = layout.row(align=True)
        row.operator("effigy.snap_fk", text="All to FK").limb = "ALL"
        row.operator("effigy.snap_ik", text="All to IK").limb = "ALL"
        layout.operator("effigy.mirror_pose", icon="MOD_MIRROR").only_face = False
        layout.prop(rig, f'["{LOOK_SWITCH}"]', text="Eyes Look at Target", slider=True)
        labels, sliders = _sided_columns(layout, "Finger Curl")
        for finger in CURL_FINGERS:
            labels.label(text=finger.title())
            row = sliders.row(align=True)
            for side in "LR":
                row.prop(rig.pose.bones[f"hand.{side}"], f'["{curl_property(finger)}"]', text="", slider=True)


class EFFIGY_PT_controls(_Sidebar, bpy.types.Panel):
    """Sliders that the method learned for this avatar."""

    bl_label = "Controls"
    bl_idname = "EFFIGY_PT_controls"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Only for an avatar with sliders."""
        rig = avatar_rig(context)
        return rig is not None and bool(slider_groups(rig))

    def draw(self, context: bpy.types.Context) -> None:
        """One block per heading; sliders without a heading come first."""
        rig, layout = avatar_rig(context), self.layout
        assert rig is not None
        layout.operator("effigy.reset_controls", icon="LOOP_BACK")
        for heading, names in sorted(slider_groups(rig), key=lambda group: bool(group[0])):
            body = layout
            if heading:
                header, body = layout.panel(f"effigy_controls_{heading}")
                header.label(text=heading)
            if body is None:
                continue
            column = body.column(align=True)
            for name in names:
                column.prop(rig, f'["{name}"]', text=slider_label(name), slider=True)


class EFFIGY_PT_face(_Sidebar, bpy.types.Panel):
    """The 52 facial actions by region."""

    bl_label = "Face"
    bl_idname = "EFFIGY_PT_face"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Only for an avatar with a face."""
        rig = avatar_rig(context)
        return rig is not None and "jawOpen" in rig

    def draw(self, context: bpy.types.Context) -> None:
        """One foldable block per region; actions with sides share a row."""
        rig, layout = avatar_rig(context), self.layout
        assert rig is not None
        row = layout.row(align=True)
        row.operator("effigy.reset_face", text="Reset Face", icon="LOOP_BACK").region = "ALL"
        row.operator("effigy.mirror_pose", text="Mirror", icon="MOD_MIRROR").only_face = True
        if PHOTO_SHAPE in rig:
            layout.prop(rig, f'["{PHOTO_SHAPE}"]', text="Photo's Own Face", slider=True)
        for region in FACE_REGIONS:
            header, body = layout.panel(f"effigy_face_{region.lower()}", default_closed=True)
            header.label(text=region)
            header.operator("effigy.reset_face", text="", icon="LOOP_BACK", emboss=False).region = region
            if body is None:
                continue
            _draw_region(body, rig, region)


def _draw_region(body: bpy.types.UILayout, rig: bpy.types.Object, region: str) -> None:
    """Sliders of a region; actions with sides share a row."""
    rows = region_rows(region)
    column = body.column(align=True)
    for label, names in rows:
        if len(names) == 1:
            column.prop(rig, f'["{names[0]}"]', text=label, slider=True)
    if all(len(names) == 1 for _, names in rows):
        return
    labels, sliders = _sided_columns(body)
    for label, names in rows:
        if len(names) == 2:
            labels.label(text=label)
            row = sliders.row(align=True)
            for name in names:
                row.prop(rig, f'["{name}"]', text="", slider=True)


def _sided_columns(layout: bpy.types.UILayout, title: str = "") -> tuple[bpy.types.UILayout, bpy.types.UILayout]:
    """A column for labels and one for sliders of the left and the right side, headed."""
    split = layout.split(factor=0.36)
    labels, sliders = split.column(align=True), split.column(align=True)
    labels.label(text=title)
    row = sliders.row(align=True)
    row.label(text="Left")
    row.label(text="Right")
    return labels, sliders
