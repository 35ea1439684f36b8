"""Export of the skinned avatar for other programs: glTF everywhere, USD where this Blender can write it."""

from __future__ import annotations

from pathlib import Path

import bpy
from bpy_extras.io_utils import ExportHelper

from ..export.clips import CLIP_CHOICES, record_clips
from ..export.gltf_avatar import write_avatar_gltf
from ..export.usd_avatar import has_usd, write_avatar_usd
from .animate import avatar_rig


class _AvatarExporter(ExportHelper):
    """What both operators share."""

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs an avatar, in object mode, in which its mesh can be copied."""
        return context.mode in ("OBJECT", "POSE") and avatar_rig(context) is not None


class EFFIGY_OT_export_gltf(_AvatarExporter, bpy.types.Operator):
    """Write the avatar's mesh with its colours, skeleton, facial actions and motion as glTF, for engines."""

    bl_idname = "effigy.export_gltf"
    bl_label = "Export Avatar (glTF)"
    bl_options = {"PRESET"}

    filename_ext = ".glb"
    filter_glob: bpy.props.StringProperty(default="*.glb", options={"HIDDEN"})  # pyright: ignore[reportInvalidTypeForm]
    motion: bpy.props.EnumProperty(name="Motion", items=CLIP_CHOICES)  # pyright: ignore[reportInvalidTypeForm]
    unlit: bpy.props.BoolProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Unlit", description="Show the photo's colours as they are; off, the engine lights them", default=True
    )
    all_influences: bpy.props.BoolProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="All Influences",
        description="Exact weights of up to eight bones a vertex; off, the four strongest, which every engine reads",
        default=False,
    )

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Record and write; a failure is one line and leaves no file."""
        rig = avatar_rig(context)
        assert rig is not None
        path = Path(bpy.path.abspath(self.filepath)).with_suffix(".glb")
        try:
            clips = record_clips(rig, self.motion)
            write_avatar_gltf(path, rig, clips, self.unlit, self.all_influences)
        except (OSError, ValueError) as error:
            self.report({"ERROR"}, f"Not written: {error}")
            return {"CANCELLED"}
        self.report({"INFO"}, f"{path.name} written with {len(clips)} animations")
        return {"FINISHED"}


class EFFIGY_OT_export_usd(_AvatarExporter, bpy.types.Operator):
    """Write the avatar's mesh with skeleton and motion, and its Gaussians frame by frame, as USD."""

    bl_idname = "effigy.export_usd"
    bl_label = "Export Avatar (USD)"
    bl_options = {"PRESET"}

    filename_ext = ".usdc"
    filter_glob: bpy.props.StringProperty(default="*.usd;*.usda;*.usdc", options={"HIDDEN"})  # pyright: ignore[reportInvalidTypeForm]
    splats: bpy.props.BoolProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Gaussians", description="As a ParticleField3DGaussianSplat (OpenUSD 26.03)", default=True
    )
    animated_splats: bpy.props.BoolProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Animated Gaussians", description="Their places and turns at every frame: a large file", default=False
    )

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Record and write; a failure is one line and leaves no file."""
        rig = avatar_rig(context)
        assert rig is not None
        path = Path(bpy.path.abspath(self.filepath))
        try:
            write_avatar_usd(path, rig, self.splats, self.animated_splats)
        except (OSError, ValueError) as error:
            self.report({"ERROR"}, f"Not written: {error}")
            return {"CANCELLED"}
        self.report({"INFO"}, f"{path.name} written")
        return {"FINISHED"}


def draw_export_menu(self: bpy.types.Menu, context: bpy.types.Context) -> None:
    """The entries in File > Export; USD only where it can be written."""
    self.layout.operator(EFFIGY_OT_export_gltf.bl_idname, text="Effigy Avatar (.glb)")
    if has_usd():
        self.layout.operator(EFFIGY_OT_export_usd.bl_idname, text="Effigy Avatar (.usdc)")
