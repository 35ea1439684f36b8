"""Changing the points of a cloud that is in the scene: what it is bound to and how it is shown stays."""

from __future__ import annotations

from collections.abc import Mapping

import bpy
import numpy as np

from ..shared.gaussians import GaussianCloud
from .create import create_cloud_object, read_attribute, read_cloud, write_attributes
from .display import DISPLAY_MODIFIER

_RECORD = ("position", "scale", "rotation", "radius")


def posed_cloud(ob: bpy.types.Object) -> GaussianCloud:
    """The record as modifiers leave it, in the object's space; without the display modifier.

    Raises:
        KeyError: If the object is no cloud of Gaussians.
    """
    display = ob.modifiers.get(DISPLAY_MODIFIER)
    shown = display.show_viewport if display is not None else False
    if display is not None and shown:
        display.show_viewport = False
    try:
        return read_cloud(ob.evaluated_get(bpy.context.evaluated_depsgraph_get()).data)
    finally:
        if display is not None and shown:
            display.show_viewport = True


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
            if attribute.name not in _RECORD and not attribute.name.startswith((".", "radiance:"))
        ]
        more = {name: read_attribute(ob.data, name)[kept] for name in others}
        replace_points(ob, read_cloud(ob.data).select(kept), more)
    return gone


def is_bound(ob: bpy.types.Object) -> bool:
    """Whether a cloud follows a proxy mesh."""
    return "bind_va" in ob.data.attributes
