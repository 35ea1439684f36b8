"""Changing the points of a cloud that is in the scene: what it is bound to and how it is shown stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import bpy
import numpy as np

from ..shared.gaussians import GaussianCloud, wxyz_product
from ..shared.sh import rotate_sh_each
from .create import ATTRIBUTE_KEYS, create_cloud_object, read_attribute, read_cloud, write_attributes
from .crop_nodes import CROP_MODIFIER
from .display import DISPLAY_MODIFIER
from .node_graph import modifier_input

_RECORD = ("position", "scale", "rotation", "radius")


def posed_cloud(ob: bpy.types.Object) -> GaussianCloud:
    """The record as modifiers leave it, in the object's space; without the display and the preview of a crop.

    The harmonics of each Gaussian turn as it has turned since rest, which nodes cannot do.

    Raises:
        KeyError: If the object is no cloud of Gaussians.
        ValueError: If it is hidden, which stops its modifiers, or its harmonics cannot be turned; one line.
    """
    with _evaluated(ob) as points:
        cloud = read_cloud(points)
    if not cloud.degree or len(ob.modifiers) == 0:
        return cloud
    rest = read_attribute(ob.data, "rotation")
    if len(rest) != len(cloud):
        if not is_bound(ob):
            return cloud
        raise ValueError(
            f"{ob.name}: view-dependent colour cannot follow the rig where a modifier changes the number of points; "
            "remove that modifier"
        )
    turns = wxyz_product(cloud.rotations_wxyz, rest * np.array([1, -1, -1, -1], np.float32))
    if np.abs(turns[:, 1:]).max(initial=0.0) < 1e-6:
        return cloud
    return replace(cloud, sh_rest=rotate_sh_each(cloud.sh_rest, turns))


def posed_positions(ob: bpy.types.Object) -> np.ndarray:
    """Where the Gaussians are shown, [N, 3] in the object's space.

    Raises:
        ValueError: If the object is hidden, which stops its modifiers.
    """
    with _evaluated(ob) as points:
        return read_attribute(points, "position")


@contextmanager
def _evaluated(ob: bpy.types.Object) -> Iterator[bpy.types.ID]:
    """The evaluated points without what only shows them."""
    if len(ob.modifiers) and not ob.visible_get():
        raise ValueError(f"{ob.name} is hidden and does not follow its rig; show it first")
    found = (ob.modifiers.get(name) for name in (DISPLAY_MODIFIER, CROP_MODIFIER))
    shown = [modifier for modifier in found if modifier is not None and modifier.show_viewport]
    for modifier in shown:
        modifier.show_viewport = False
    try:
        yield ob.evaluated_get(bpy.context.evaluated_depsgraph_get()).data
    finally:
        for modifier in shown:
            modifier.show_viewport = True


@contextmanager
def clouds_at_rest() -> Iterator[None]:
    """While frames are played for something else: no cloud follows its rig, which takes most of a frame.

    Hiding the clouds would deselect them.
    """
    clouds = [ob for ob in bpy.context.scene.objects if ob.type == "POINTCLOUD" and ob.library is None]
    shown = [modifier for ob in clouds for modifier in ob.modifiers if modifier.show_viewport]
    for modifier in shown:
        modifier.show_viewport = False
    try:
        yield
    finally:
        for modifier in shown:
            modifier.show_viewport = True


def replace_points(ob: bpy.types.Object, cloud: GaussianCloud, more: Mapping[str, np.ndarray] | None = None) -> None:
    """Give an object other points; modifiers, parent and name stay, attributes that are not named are gone.

    Args:
        ob: A cloud.
        cloud: In the object's space.
        more: Further attributes [N] or [N, width] of the present points' types, by name.
    """
    types = {attribute.name: attribute.data_type for attribute in ob.data.attributes}
    name = ob.data.name
    # Blender below 5.1 cannot resize a point cloud: a new one takes the old one's place.
    collection = bpy.context.scene.collection
    fresh = create_cloud_object(f"{name} new", cloud, collection)
    write_attributes(fresh.data, {key: (types[key], values) for key, values in (more or {}).items()})
    old, ob.data = ob.data, fresh.data
    for slot in old.materials:
        ob.data.materials.append(slot)
    bpy.data.objects.remove(fresh)
    if old.users == 0:
        bpy.data.pointclouds.remove(old)
    ob.data.name = name


def keep_points(ob: bpy.types.Object, kept: np.ndarray) -> int:
    """Delete the points that are not kept [N] bool; bound ones stay bound. Returns how many went."""
    gone = int(len(kept) - np.count_nonzero(kept))
    if gone:
        others = [
            attribute.name
            for attribute in ob.data.attributes
            if attribute.name not in _RECORD
            and not attribute.name.startswith((".", "radiance:"))
            and attribute.data_type in ATTRIBUTE_KEYS
        ]
        more = {name: read_attribute(ob.data, name)[kept] for name in others}
        replace_points(ob, read_cloud(ob.data).select(kept), more)
    return gone


def remove_cloud(ob: bpy.types.Object) -> None:
    """Delete a cloud with what only it uses: its points and the hidden disc that its display copies."""
    display = ob.modifiers.get(DISPLAY_MODIFIER)
    disc = modifier_input(display, "Disc") if display is not None and display.node_group is not None else None
    points = ob.data
    bpy.data.objects.remove(ob)
    if points.users == 0:
        bpy.data.pointclouds.remove(points)
    if disc is not None:
        mesh = disc.data
        bpy.data.objects.remove(disc)
        if mesh.users == 0:
            bpy.data.meshes.remove(mesh)


def is_bound(ob: bpy.types.Object) -> bool:
    """Whether a cloud follows a proxy mesh."""
    return "bind_va" in ob.data.attributes
