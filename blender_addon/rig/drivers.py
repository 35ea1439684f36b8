"""Drivers without expressions: they work in files whose scripts are not allowed to run, and without the add-on."""

from __future__ import annotations

import bpy


def drive(
    owner: bpy.types.bpy_struct, path: str, source: bpy.types.ID, source_path: str, factor: float = 1.0, index: int = -1
) -> bpy.types.FCurve:
    """Make one value follow another one.

    Args:
        owner: Whose value is driven.
        path: The value's path in `owner`.
        source: The datablock that is followed; the property must have been there at its last evaluation.
        source_path: The value's path in `source`.
        factor: The driven value is `factor` times the source.
        index: Component of a vector, -1 for single values.
    """
    curve = owner.driver_add(path, index)
    curve.driver.type = "AVERAGE"
    variable = curve.driver.variables.new()
    variable.name = "value"
    variable.targets[0].id = source
    variable.targets[0].data_path = source_path
    if factor != 1.0:
        scale_driver(curve, factor)
    return curve


def scale_driver(curve: bpy.types.FCurve, factor: float, offset: float = 0.0) -> None:
    """Make a driver's result `factor` times its variable plus `offset`: a linear generator on the driver's curve."""
    while len(curve.keyframe_points):
        curve.keyframe_points.remove(curve.keyframe_points[0])
    while len(curve.modifiers):
        curve.modifiers.remove(curve.modifiers[0])
    generator = curve.modifiers.new("GENERATOR")
    generator.mode = "POLYNOMIAL"
    generator.poly_order = 1
    generator.coefficients = (offset, factor)
