"""Motion of another armature in the scene, as if it had come from a file."""

from __future__ import annotations

from collections.abc import Sequence

import bpy
import numpy as np

from ..cloud.edit import clouds_at_rest
from .bvh import Bvh, MotionError


def sample_armature(ob: bpy.types.Object, first: int, last: int, names: Sequence[str] | None = None) -> Bvh:
    """Play an armature and record it: constraints, drivers and whatever else moves it included.

    Args:
        ob: An armature object.
        first: First frame.
        last: Last frame, included.
        names: Bones that are recorded, each below the nearest of its parents that is one of them; None for all.

    Raises:
        MotionError: If it has no bones, or there are no frames.
    """
    chosen = None if names is None else set(names)
    bones = [bone for bone in ob.data.bones if chosen is None or bone.name in chosen]
    bones.sort(key=lambda bone: len(bone.parent_recursive))
    if not bones or last < first:
        raise MotionError(f"{ob.name} has no bones, or there are no frames to copy")
    row = {bone.name: k for k, bone in enumerate(bones)}
    parents = np.array([next((row[p.name] for p in bone.parent_recursive if p.name in row), -1) for bone in bones])
    heads = np.array([bone.head_local for bone in bones])
    offsets = np.where(parents[:, None] >= 0, heads - heads[np.maximum(parents, 0)], 0.0)
    ends = np.array([bone.tail_local - bone.head_local for bone in bones])
    rest = np.array([np.array(bone.matrix_local)[:3, :3] for bone in bones])
    scene = bpy.context.scene
    before = scene.frame_current, scene.frame_subframe
    turned, roots = [], []
    with clouds_at_rest():
        try:
            for frame in range(first, last + 1):
                scene.frame_set(frame)
                evaluated = ob.evaluated_get(bpy.context.evaluated_depsgraph_get())
                poses = [np.array(evaluated.matrix_world @ evaluated.pose.bones[bone.name].matrix) for bone in bones]
                turned.append([pose[:3, :3] / np.linalg.norm(pose[:3, :3], axis=0) for pose in poses])
                roots.append(poses[0][:3, 3])
        finally:
            scene.frame_set(before[0], subframe=before[1])
    # A bone's turn from its rest pose, in the armature's axes, is what a BVH file stores.
    world = np.array(turned) @ np.swapaxes(rest, -1, -2)
    local = world.copy()
    children = parents >= 0
    local[:, children] = np.swapaxes(world[:, parents[children]], -1, -2) @ world[:, children]
    fps = scene.render.fps / scene.render.fps_base
    return Bvh(tuple(row), parents, offsets, ends, local, np.array(roots), 1.0 / fps)
