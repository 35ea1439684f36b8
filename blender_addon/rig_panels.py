"""Panels of the rig: limbs, fingers, gaze and face of the active avatar."""

from __future__ import annotations

import bpy

from .operators.animate import avatar_rig
from .operators.rig import has_limbs
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
            row = column.row(align=True)
            label = f"{limb.name[:-2].title()} {limb.name[-1]}"
            row.prop(rig, f'["{limb.switch}"]', text=f"{label}  IK", slider=True)
            row.operator("effigy.snap_fk", text="FK").limb = limb.name
            row.operator("effigy.snap_ik", text="IK").limb = limb.name
        row = layout.row(align=True)
        row.operator("effigy.snap_fk", text="All to FK").limb = "ALL"
        row.operator("effigy.snap_ik", text="All to IK").limb = "ALL"
        layout.prop(rig, f'["{LOOK_SWITCH}"]', text="Eyes Look at Target", slider=True)
        column = layout.column(align=True)
        column.label(text="Finger curl: left, right")
        for finger in CURL_FINGERS:
            row = column.row(align=True)
            for side in "LR":
                hand = rig.pose.bones[f"hand.{side}"]
                row.prop(hand, f'["{curl_property(finger)}"]', text=finger.title(), slider=True)


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
        if PHOTO_SHAPE in rig:
            layout.prop(rig, f'["{PHOTO_SHAPE}"]', text="Photo's Own Face", slider=True)
        for region in FACE_REGIONS:
            header, body = layout.panel(f"effigy_face_{region.lower()}", default_closed=True)
            header.label(text=region)
            header.operator("effigy.reset_face", text="", icon="LOOP_BACK", emboss=False).region = region
            if body is None:
                continue
            column = body.column(align=True)
            for label, names in region_rows(region):
                row = column.row(align=True)
                for name in names:
                    side = "" if len(names) == 1 else f" {'L' if name.endswith('Left') else 'R'}"
                    row.prop(rig, f'["{name}"]', text=label + side, slider=True)
