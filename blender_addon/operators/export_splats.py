"""Export of clouds of Gaussians as splat files, as they are posed or at rest, one frame or a sequence."""

from __future__ import annotations

from pathlib import Path

import bpy
import numpy as np
from bpy_extras.io_utils import ExportHelper

from ..cloud.create import read_cloud
from ..cloud.edit import posed_cloud
from ..shared.axes import axes_to_blender
from ..shared.cloud_edits import merge_clouds, transform_cloud
from ..shared.formats import SHARED_FORMATS, FormatError, find_writer
from ..shared.gaussians import GaussianCloud
from .edit import splat_objects

_FORMATS = [
    (".ply", "PLY", "INRIA layout, lossless, opens in every splat viewer"),
    (".compressed.ply", "Compressed PLY", "Four times smaller"),
    (".spz", "SPZ", "Ten times smaller"),
    (".glb", "glTF (KHR_gaussian_splatting)", "For engines and the web"),
    (".splat", "Splat", "32 bytes a Gaussian, no view-dependent colour"),
]


class EFFIGY_OT_export_splats(bpy.types.Operator, ExportHelper):
    """Write the selected Gaussians into one splat file, object transforms included."""

    bl_idname = "effigy.export_splats"
    bl_label = "Export Gaussian Splats"
    bl_options = {"PRESET"}

    filename_ext = ".ply"
    check_extension = None
    format: bpy.props.EnumProperty(name="Format", items=_FORMATS)  # pyright: ignore[reportInvalidTypeForm]
    state: bpy.props.EnumProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="State",
        items=[
            ("POSED", "As Shown", "Posed, at the current frame"),
            ("REST", "At Rest", "The rest pose, before the rig and all modifiers"),
        ],
    )
    sequence: bpy.props.BoolProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Sequence", description="One file for every frame of the scene", default=False
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs a selected cloud, or a selected rig with one."""
        return bool(splat_objects(context))

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Write; a failure is one line and leaves no half-written file."""
        path = Path(bpy.path.abspath(self.filepath))
        stem = path.name
        for suffix in sorted((row[0] for row in _FORMATS), key=len, reverse=True):
            stem = stem.removesuffix(suffix)
        scene = context.scene
        frames = range(scene.frame_start, scene.frame_end + 1) if self.sequence else [None]
        before = scene.frame_current, scene.frame_subframe
        lost: tuple[str, ...] = ()
        try:
            for frame in frames:
                if frame is not None:
                    scene.frame_set(frame)
                name = f"{stem}{self.format}" if frame is None else f"{stem}_{frame:04d}{self.format}"
                row, write = find_writer(path.with_name(name), SHARED_FORMATS)
                to_file = np.eye(4)
                to_file[:3, :3] = axes_to_blender(row.axes).T
                clouds = [_placed(ob, self.state == "POSED", to_file) for ob in splat_objects(context)]
                cloud = merge_clouds(clouds)
                if not len(cloud):
                    raise ValueError("there are no Gaussians")
                lost = write(path.with_name(name), cloud)
        except (FormatError, OSError, ValueError) as error:
            self.report({"ERROR"}, f"Not written: {error}")
            return {"CANCELLED"}
        finally:
            if self.sequence:
                scene.frame_set(before[0], subframe=before[1])
        self.report({"INFO"}, "; ".join((f"{stem}{self.format} written", *lost)))
        return {"FINISHED"}


def _placed(ob: bpy.types.Object, posed: bool, to_file: np.ndarray) -> GaussianCloud:
    """A cloud where its object stands, in the file's axes: one turn for both."""
    cloud = posed_cloud(ob) if posed else read_cloud(ob.data)
    return transform_cloud(cloud, to_file @ np.array(ob.matrix_world))


def draw_export_menu(self: bpy.types.Menu, context: bpy.types.Context) -> None:
    """The entry in File > Export."""
    self.layout.operator(EFFIGY_OT_export_splats.bl_idname, text="Gaussian Splats (.ply, .spz, .glb, .splat)")
