"""A whole file from a bundle, without a window: what scripts/batch.py does inside Blender."""

from __future__ import annotations

from pathlib import Path

import bpy

from ..cloud.create import read_cloud
from ..cloud.display import DISPLAY_MODIFIER
from ..motion.files import fit_motion, load_motion
from ..motion.keys import assign_action
from ..motion.retarget import RetargetSettings
from ..motion.walk import WALK_FRAMES
from ..rig.armature import rest_joints
from ..rig.assemble import AvatarObjects, Pose, insert_avatar
from ..rig.stage import prepare_scene
from ..shared.avatar import read_bundle
from ..shared.axes import blender_to_body_cloud
from ..shared.formats.ply import write_ply
from .animate import play_motion


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


def play_file(objects: AvatarObjects, path: Path) -> None:
    """Play a motion file on the avatar, from the scene's first frame; the scene becomes as long as the motion.

    Raises:
        MotionError: If it is no motion that can be played.
        OSError: If it cannot be opened.
    """
    scene = bpy.context.scene
    settings = RetargetSettings(fps=scene.render.fps / scene.render.fps_base)
    motion = fit_motion(path.stem, load_motion(path), rest_joints(objects.armature), settings)
    play_motion(objects.armature, motion, scene)
    scene.frame_end = scene.frame_start + len(motion.pose) - 1
    scene.frame_set(scene.frame_start)


def write_clouds(objects: AvatarObjects, folder: Path) -> list[Path]:
    """Play the scene and write the cloud of each frame as Blender evaluates it, body frame.

    Returns:
        frame_001.ply and so on.
    """
    folder.mkdir()
    scene = bpy.context.scene
    display = objects.cloud.modifiers.get(DISPLAY_MODIFIER)
    if display is not None:
        display.show_viewport = False  # the bare point cloud
    paths = []
    for frame in range(scene.frame_start, scene.frame_end + 1):
        scene.frame_set(frame)
        evaluated = objects.cloud.evaluated_get(bpy.context.evaluated_depsgraph_get())
        path = folder / f"frame_{frame:03d}.ply"
        write_ply(path, blender_to_body_cloud(read_cloud(evaluated.data)))
        paths.append(path)
    return paths


def play_walk(objects: AvatarObjects) -> None:
    """Play the walk, whatever the saved file plays."""
    scene = bpy.context.scene
    assign_action(objects.armature, objects.actions["WALK"])
    scene.frame_start, scene.frame_end = 1, WALK_FRAMES
