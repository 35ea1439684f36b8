"""Import of a finished avatar bundle."""

from __future__ import annotations

from pathlib import Path

import bpy

from ..cloud.viewport import show_splats
from ..rig.assemble import insert_avatar
from ..shared.avatar import BundleError, read_bundle, read_result
from .generate import remember, remember_request, stand_beside_others


class EFFIGY_OT_import_avatar(bpy.types.Operator):
    """Bring a generated avatar into the scene: Gaussians, armature, proxy mesh, poses and the photo's camera."""

    bl_idname = "effigy.import_avatar"
    bl_label = "Import Avatar"
    bl_options = {"REGISTER", "UNDO"}

    directory: bpy.props.StringProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Folder", description="Folder of the avatar (gaussians.ply and avatar.npz)", subtype="DIR_PATH"
    )
    pose: bpy.props.EnumProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Pose",
        items=[
            ("PHOTO", "Photo", "Stand as in the photo"),
            ("WALK", "Walk", "Walk on the spot"),
            ("REST", "T-pose", "The rest pose"),
        ],
        default="PHOTO",
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Ask for the folder."""
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Read and insert; a bad folder is reported and changes nothing."""
        folder = Path(bpy.path.abspath(self.directory))
        try:
            cloud, avatar = read_bundle(folder)
            # Only a job's folder has it; the rig of any bundle works.
            result = read_result(folder) if (folder / "result.json").is_file() else {}
        except (BundleError, ValueError, OSError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        objects = insert_avatar(folder.name or "avatar", cloud, avatar, self.pose)
        stand_beside_others(objects, context.scene)
        if result:
            photo = next(iter(sorted(folder.glob("input.*"))), folder / "input.png")
            remember(objects.armature, folder, result)
            remember_request(objects.armature, result, photo)
        show_splats(objects.cloud, not bpy.app.background)
        self.report({"INFO"}, f"{len(cloud)} Gaussians imported from {folder.name}")
        return {"FINISHED"}
