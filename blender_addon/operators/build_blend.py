"""A whole file from a bundle, without a window: what scripts/batch.py does inside Blender."""

from __future__ import annotations

from pathlib import Path

import bpy

from ..cloud.create import read_cloud
from ..cloud.display import DISPLAY_MODIFIER
from ..motion.keys import assign_action
from ..motion.walk import WALK_FRAMES
from ..rig.assemble import AvatarObjects, Pose, insert_avatar
from ..rig.stage import prepare_scene
from ..shared.avatar import read_bundle
from ..shared.axes import blender_to_body_cloud
from ..shared.formats.ply import write_ply


def build_scene(bundle: Path, pose: Pose) -> AvatarObjects:
    """A new file with the avatar of a bundle in it and nothing else.

    Raises:
        BundleError: If the folder is no bundle.
    """
    cloud, avatar = read_bundle(bundle)
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    bpy.data.batch_remove([*bpy.data.objects, *bpy.data.collections])
    objects = insert_avatar("avatar", cloud, avatar, pose)
    prepare_scene(objects, avatar)
    bpy.context.scene.frame_set(1)
    return objects


def save_blend(path: Path) -> None:
    """Save the current file, compressed, with nothing outside it.

    Raises:
        OSError: If Blender could not write it.
    """
    bpy.data.orphans_purge(do_recursive=True)
    try:
        bpy.ops.wm.save_as_mainfile(filepath=str(path), compress=True, relative_remap=True)
    except RuntimeError as error:
        raise OSError(str(error)) from error
    if not path.is_file():
        raise OSError(f"{path} was not written")


def write_walk_clouds(objects: AvatarObjects, folder: Path) -> list[Path]:
    """Play the walk and write the cloud of each frame as Blender evaluates it, body frame.

    Returns:
        frame_001.ply and so on.
    """
    folder.mkdir()
    assign_action(objects.armature, objects.actions["WALK"])
    display = objects.cloud.modifiers.get(DISPLAY_MODIFIER)
    if display is not None:
        display.show_viewport = False  # the bare point cloud
    paths = []
    for frame in range(1, WALK_FRAMES + 1):
        bpy.context.scene.frame_set(frame)
        evaluated = objects.cloud.evaluated_get(bpy.context.evaluated_depsgraph_get())
        path = folder / f"frame_{frame:03d}.ply"
        write_ply(path, blender_to_body_cloud(read_cloud(evaluated.data)))
        paths.append(path)
    return paths
