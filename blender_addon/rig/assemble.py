"""A bundle becomes objects: armature, proxy, bound cloud, camera and actions in one collection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import bpy
import numpy as np
from mathutils import Matrix

from ..cloud.create import create_cloud_object, splat_type
from ..cloud.display import ViewportDisplay, add_display
from ..motion.keys import assign_action, write_action
from ..motion.poses import face_of_photo, photo_motion, place_photo, rest_motion
from ..motion.walk import walk_motion
from ..shared.avatar import Avatar
from ..shared.axes import BODY_TO_BLENDER, body_to_blender_cloud
from ..shared.gaussians import GaussianCloud
from .armature import create_armature
from .bind import bind_cloud
from .controls import create_pose_objects
from .proxy import create_proxy

Pose = Literal["PHOTO", "WALK", "REST"]


@dataclass(frozen=True)
class AvatarObjects:
    """What an imported avatar consists of. Use it at once; undo and file loading invalidate it."""

    collection: bpy.types.Collection
    armature: bpy.types.Object
    proxy: bpy.types.Object
    cloud: bpy.types.Object
    camera: bpy.types.Object
    actions: dict[Pose, bpy.types.Action]


def insert_avatar(
    name: str,
    cloud: GaussianCloud,
    avatar: Avatar,
    pose: Pose = "PHOTO",
    viewport: ViewportDisplay = ViewportDisplay.DISCS,
) -> AvatarObjects:
    """Insert an avatar into the current scene.

    The armature is active and selected, and stands in `pose`. The three poses are actions: choose another in the action
    editor. The file depends on nothing: no add-on, no other file, no scripts.

    Args:
        name: Name of the collection and its objects.
        cloud: The bundle's rest cloud, body frame.
        avatar: The bundle's arrays.
        pose: The action that is active at the end.
        viewport: How the cloud is shown in the viewport where Blender has no splats of its own.
    """
    if bpy.context.mode != "OBJECT":
        bpy.ops.object.mode_set(mode="OBJECT")
    for ob in bpy.context.view_layer.objects:
        ob.select_set(False)
    collection = bpy.data.collections.new(f"Effigy {name}")
    bpy.context.scene.collection.children.link(collection)

    armature = create_armature(name, avatar, collection)
    controls = avatar.controls
    followed = None if controls is None else create_pose_objects(name, armature, controls, collection)
    proxy = create_proxy(f"{name} proxy", avatar, armature, collection, followed)
    splats = create_cloud_object(f"{name} splats", body_to_blender_cloud(cloud), collection)
    splats.parent = armature
    bind_cloud(splats, proxy, avatar, armature, followed)
    if splat_type() is None:
        add_display(splats, collection, viewport)
    camera = create_photo_camera(f"{name} photo camera", avatar, collection)

    actions: dict[Pose, bpy.types.Action] = {
        "PHOTO": write_action(armature, photo_motion(avatar)),
        "WALK": write_action(armature, walk_motion(avatar)),
        "REST": write_action(armature, rest_motion(avatar)),
    }
    if pose != "REST":
        # The walk has no keys of the face, so that its sliders stay free.
        for action, weight in face_of_photo(avatar).items():
            armature[action] = weight
    assign_action(armature, actions[pose])
    bpy.context.view_layer.objects.active = armature
    # Play the action at the artist's current frame.
    armature.update_tag(refresh={"TIME"})
    return AvatarObjects(collection, armature, proxy, splats, camera, actions)


def create_photo_camera(name: str, avatar: Avatar, collection: bpy.types.Collection) -> bpy.types.Object:
    """A camera that sees the avatar in its photo's pose as the photo does, at the photo's size in pixels."""
    fx, fy, cx, cy = (float(x) for x in avatar.photo_intrinsics_px)
    width, height = (float(x) for x in avatar.photo_size_px)
    data = bpy.data.cameras.new(name)
    data.sensor_fit, data.sensor_width = "HORIZONTAL", 36.0
    data.lens = fx * data.sensor_width / width
    # Blender shifts in units of the sensor's width; OpenCV's y points down.
    data.shift_x = (width / 2 - cx) / width
    data.shift_y = (cy - height / 2) / width * fx / fy
    data.clip_start, data.clip_end = 0.01, 1000.0
    data.display_size = 0.15
    ob = bpy.data.objects.new(name, data)
    pose = np.eye(4)
    pose[:3, :3] = BODY_TO_BLENDER
    # OpenCV looks along +Z with y down, Blender along -Z with y up.
    pose = pose @ np.linalg.inv(place_photo(avatar).w2c) @ np.diag([1.0, -1.0, -1.0, 1.0])
    ob.matrix_world = Matrix(pose.tolist())
    collection.objects.link(ob)
    return ob
