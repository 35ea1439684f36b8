"""Motion onto an avatar: from files, and from another armature of the scene; and back into a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import bpy
from bpy_extras.io_utils import ExportHelper

from ..motion.bvh import MotionError, write_bvh
from ..motion.files import fit_motion, load_motion
from ..motion.from_armature import sample_armature
from ..motion.keys import assign_action, write_action
from ..motion.poses import Motion, local_rotations
from ..motion.retarget import RetargetSettings, retarget_bvh
from ..rig.armature import rest_joints
from ..rig.limbs import release_limbs
from ..shared.axes import BODY_TO_BLENDER, blender_to_body_points
from ..shared.bone_names import Convention, bone_name
from ..shared.skeleton import BONE_NAMES, JOINT_NAMES, PARENTS

_CONVENTIONS = [
    ("smplx", "SMPL-X", "left_hip, left_knee, ..."),
    ("mixamo", "Mixamo", "mixamorig:LeftUpLeg, ..."),
    ("unreal", "Unreal", "thigh_l, calf_l, ..."),
    ("vrm", "VRM", "leftUpperLeg, leftLowerLeg, ..."),
    ("rigify", "Rigify", "thigh.L, shin.L, ..."),
]


def is_avatar_rig(ob: bpy.types.Object | None) -> bool:
    """Whether an object is the armature of an avatar of ours."""
    return ob is not None and ob.type == "ARMATURE" and "effigy_body_model" in ob


def avatar_rig(context: bpy.types.Context) -> bpy.types.Object | None:
    """The active avatar's armature; any of its parts may be active."""
    ob = context.active_object
    while ob is not None and not is_avatar_rig(ob):
        ob = ob.parent
    return ob


class _RetargetOptions:
    """Options that both ways share; annotations only, as Blender's mix-ins want them."""

    speed: bpy.props.FloatProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Speed", description="2 plays twice as fast", default=1.0, min=0.1, max=10.0
    )
    in_place: bpy.props.BoolProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="In Place", description="Keep the figure above its place", default=False
    )
    keep_contacts: bpy.props.BoolProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Hold Feet", description="Feet that stand do not slide", default=True
    )
    face_front: bpy.props.BoolProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Face Front", description="Turn the motion so that it begins facing the front", default=True
    )

    def settings(self, scene: bpy.types.Scene) -> RetargetSettings:
        """The options as settings, at the scene's frame rate."""
        fps = scene.render.fps / scene.render.fps_base
        return RetargetSettings(fps, self.speed, self.in_place, self.keep_contacts, self.face_front)

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs an avatar."""
        return avatar_rig(context) is not None


class EFFIGY_OT_import_motion(_RetargetOptions, bpy.types.Operator):
    """Play a motion file on the active avatar: BVH of any skeleton, or SMPL-X and AMASS .npz."""

    bl_idname = "effigy.import_motion"
    bl_label = "Import Motion"
    bl_options = {"REGISTER", "UNDO"}

    filepath: bpy.props.StringProperty(subtype="FILE_PATH", options={"SKIP_SAVE"})  # pyright: ignore[reportInvalidTypeForm]
    filter_glob: bpy.props.StringProperty(default="*.bvh;*.npz", options={"HIDDEN"})  # pyright: ignore[reportInvalidTypeForm]
    hands: bpy.props.EnumProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Hands",
        description="What the hand poses of an .npz file count from",
        items=[
            ("auto", "Automatic", "What the file says, else the flat hand"),
            ("flat", "Flat Hand", "As AMASS stores them"),
            ("mean", "Mean Hand", "As SMPL-X itself does; a relaxed hand stands for its licensed mean"),
        ],
    )

    up: bpy.props.EnumProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Up",
        description="Axis of an .npz file that points up; other files say it themselves",
        items=[
            ("auto", "Automatic", "What points up while the body stands, as it mostly does"),
            ("y", "Y", "As most tools around SMPL-X write it"),
            ("z", "Z", "As AMASS writes it"),
        ],
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Ask for the file; one that was dropped is there already."""
        if self.filepath:
            return self.execute(context)
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Read, retarget, make it the avatar's action; a bad file is reported and changes nothing."""
        path = Path(bpy.path.abspath(self.filepath))
        rig = avatar_rig(context)
        assert rig is not None
        settings = replace(self.settings(context.scene), up=self.up)
        try:
            source = load_motion(path, self.hands)
            motion = fit_motion(path.stem, source, rest_joints(rig), settings)
        except (MotionError, OSError, MemoryError) as error:
            self.report({"ERROR"}, str(error) or f"{path.name} does not fit into memory; cut it into parts")
            return {"CANCELLED"}
        play_motion(rig, motion, context.scene)
        notes = getattr(source, "notes", ())
        self.report({"WARNING" if notes else "INFO"}, "; ".join((f"{path.name}: {len(motion.pose)} frames", *notes)))
        return {"FINISHED"}


class EFFIGY_OT_copy_motion(_RetargetOptions, bpy.types.Operator):
    """Play the motion of the other selected armature on the active avatar, over the scene's frames."""

    bl_idname = "effigy.copy_motion"
    bl_label = "Copy Motion of Selected"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs an avatar and one other armature."""
        return avatar_rig(context) is not None and _other_armature(context) is not None

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Record and retarget."""
        rig, other = avatar_rig(context), _other_armature(context)
        assert rig is not None and other is not None
        scene = context.scene
        try:
            recorded = sample_armature(other, scene.frame_start, scene.frame_end)
            motion = retarget_bvh(other.name, recorded, rest_joints(rig), self.settings(scene))
        except MotionError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        play_motion(rig, motion, scene)
        return {"FINISHED"}


class EFFIGY_OT_export_bvh(bpy.types.Operator, ExportHelper):
    """Write the active avatar's motion over the scene's frames as BVH, whatever moves it: keys, IK, constraints."""

    bl_idname = "effigy.export_bvh"
    bl_label = "Export Motion (BVH)"
    bl_options = {"PRESET"}

    filename_ext = ".bvh"
    filter_glob: bpy.props.StringProperty(default="*.bvh", options={"HIDDEN"})  # pyright: ignore[reportInvalidTypeForm]
    names: bpy.props.EnumProperty(name="Bone Names", items=_CONVENTIONS)  # pyright: ignore[reportInvalidTypeForm]
    unit: bpy.props.EnumProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Unit",
        items=[("1", "Metres", "As Blender and SMPL-X"), ("100", "Centimetres", "As Mixamo and most motion libraries")],
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs an avatar."""
        return avatar_rig(context) is not None

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Record the 55 joints, no controls, and write them in the body frame (Y up)."""
        rig, scene = avatar_rig(context), context.scene
        assert rig is not None
        path = Path(bpy.path.abspath(self.filepath)).with_suffix(".bvh")
        try:
            recorded = sample_armature(rig, scene.frame_start, scene.frame_end, BONE_NAMES)
            rows = [recorded.names.index(bone) for bone in BONE_NAMES]
            world = BODY_TO_BLENDER.T @ recorded.world()[0][:, rows] @ BODY_TO_BLENDER
            names: Convention = self.names
            unit = float(self.unit)
            write_bvh(
                path, [bone_name(joint, names) or joint for joint in JOINT_NAMES], PARENTS, unit * rest_joints(rig),
                local_rotations(world), unit * blender_to_body_points(recorded.positions), recorded.frame_seconds,
            )  # fmt: skip
        except (MotionError, OSError) as error:
            self.report({"ERROR"}, f"{path.name} was not written: {error}")
            return {"CANCELLED"}
        self.report({"INFO"}, f"{path.name}: {len(world)} frames")
        return {"FINISHED"}


class EFFIGY_FH_motion(bpy.types.FileHandler):
    """Motion files dropped on the 3D view while an avatar is active."""

    bl_idname = "EFFIGY_FH_motion"
    bl_label = "Motion of the Avatar"
    bl_import_operator = "effigy.import_motion"
    bl_file_extensions = ".bvh;.npz"

    @classmethod
    def poll_drop(cls, context: bpy.types.Context) -> bool:
        """Only the 3D view takes them, and only an avatar can play them."""
        return context.area is not None and context.area.type == "VIEW_3D" and avatar_rig(context) is not None


def _other_armature(context: bpy.types.Context) -> bpy.types.Object | None:
    rig = avatar_rig(context)
    others = [ob for ob in context.selected_objects if ob.type == "ARMATURE" and ob != rig]
    return others[0] if len(others) == 1 else None


def play_motion(rig: bpy.types.Object, motion: Motion, scene: bpy.types.Scene) -> None:
    """Make a motion the rig's action, and the scene long enough for it."""
    first = scene.frame_start
    assign_action(rig, write_action(rig, motion, first))
    release_limbs(rig)
    scene.frame_end = max(scene.frame_end, first + len(motion.pose) - 1)
    rig.update_tag(refresh={"TIME"})
