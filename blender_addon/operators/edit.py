"""Editing clouds of Gaussians: crop, clean, thin out, colour, merge, apply the transform."""

from __future__ import annotations

import bpy
import numpy as np
from mathutils import Vector
from mathutils.bvhtree import BVHTree

from ..cloud.create import read_cloud
from ..cloud.draw import BASE
from ..cloud.edit import is_bound, keep_points, posed_positions, remove_cloud, replace_points
from ..shared.cloud_edits import ColourChange, change_colour, decimate, merge_clouds, outliers, transform_cloud
from ..shared.gaussians import GaussianCloud

_RAY = Vector((0.5773, 0.5774, 0.5773))


def splat_objects(context: bpy.types.Context) -> list[bpy.types.Object]:
    """Selected clouds of Gaussians, and those of selected rigs."""
    chosen = [child for ob in context.selected_objects for child in (ob, *ob.children_recursive)]
    found = {ob for ob in chosen if ob.type == "POINTCLOUD" and BASE in ob.data.attributes}
    return sorted(found, key=lambda ob: ob.name)


class _CloudOperator:
    """Works on the selected clouds, in object mode."""

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs a selected cloud."""
        return context.mode == "OBJECT" and bool(splat_objects(context))


class EFFIGY_OT_crop(_CloudOperator, bpy.types.Operator):
    """Delete the Gaussians outside, or inside, the selected mesh; in the pose that is shown."""

    bl_idname = "effigy.crop"
    bl_label = "Crop by Mesh"
    bl_options = {"REGISTER", "UNDO"}

    shape: bpy.props.EnumProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Shape",
        items=[("BOX", "Box", "The mesh's bounding box"), ("MESH", "Mesh", "The inside of the closed mesh")],
    )
    inside: bpy.props.BoolProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Delete Inside", description="Delete what lies inside instead of outside", default=False
    )

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Crop every selected cloud."""
        meshes = [ob for ob in context.selected_objects if ob.type == "MESH" and not ob.name.endswith("proxy")]
        if len(meshes) != 1:
            self.report({"ERROR"}, "Select one mesh and the clouds that it shall crop")
            return {"CANCELLED"}
        clouds = splat_objects(context)
        try:
            kept = [_points_in(meshes[0], ob, self.shape) != self.inside for ob in clouds]
        except ValueError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        empty = next((ob for ob, mask in zip(clouds, kept, strict=True) if not mask.any()), None)
        if empty is not None:
            self.report({"ERROR"}, f"Nothing of {empty.name} would be left; move the mesh")
            return {"CANCELLED"}
        removed = sum(keep_points(ob, mask) for ob, mask in zip(clouds, kept, strict=True))
        self.report({"INFO"}, f"{removed} Gaussians deleted")
        return {"FINISHED"}


class EFFIGY_OT_clean(_CloudOperator, bpy.types.Operator):
    """Delete faint, large or far Gaussians."""

    bl_idname = "effigy.clean"
    bl_label = "Clean Up"
    bl_options = {"REGISTER", "UNDO"}

    opacity: bpy.props.FloatProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Opacity Below", default=0.02, min=0.0, max=1.0, subtype="FACTOR"
    )
    size_m: bpy.props.FloatProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Larger Than", description="Longest axis (one standard deviation); 0 for no limit", default=0.0, min=0.0,
        unit="LENGTH",
    )  # fmt: skip
    floaters: bpy.props.BoolProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Floaters", description="Far away from all others, or as large as the whole", default=True
    )

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Clean every selected cloud."""
        clouds = splat_objects(context)
        bad = [self._bad(read_cloud(ob.data)) for ob in clouds]
        empty = next((ob for ob, mask in zip(clouds, bad, strict=True) if mask.all()), None)
        if empty is not None:
            self.report({"ERROR"}, f"Nothing of {empty.name} would be left; choose weaker limits")
            return {"CANCELLED"}
        removed = sum(keep_points(ob, ~mask) for ob, mask in zip(clouds, bad, strict=True))
        self.report({"INFO"}, f"{removed} Gaussians deleted")
        return {"FINISHED"}

    def _bad(self, cloud: GaussianCloud) -> np.ndarray:
        """[N] bool."""
        bad = cloud.opacities < self.opacity
        if self.size_m > 0:
            bad |= cloud.scales_m.max(axis=1) > self.size_m
        return bad | outliers(cloud) if self.floaters else bad


class EFFIGY_OT_decimate(_CloudOperator, bpy.types.Operator):
    """Merge neighbouring Gaussians until no more than a number are left."""

    bl_idname = "effigy.decimate"
    bl_label = "Thin Out"
    bl_options = {"REGISTER", "UNDO"}

    budget: bpy.props.IntProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="At Most", description="Gaussians of each cloud", default=50000, min=1, soft_min=1000
    )

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Thin out every selected cloud; a bound one loses its least visible Gaussians, for those keep their places."""
        for ob in splat_objects(context):
            cloud = read_cloud(ob.data)
            if is_bound(ob):
                ordered = np.sort(cloud.scales_m, axis=1)
                seen = cloud.opacities * ordered[:, 1] * ordered[:, 2]
                kept = np.zeros(len(cloud), bool)
                kept[np.argsort(0.0 - seen, kind="stable")[: self.budget]] = True
                keep_points(ob, kept)
            elif len(cloud) > self.budget:
                replace_points(ob, decimate(cloud, self.budget))
        return {"FINISHED"}


class EFFIGY_OT_colour(_CloudOperator, bpy.types.Operator):
    """Change the colours of the selected Gaussians."""

    bl_idname = "effigy.colour"
    bl_label = "Adjust Colour"
    bl_options = {"REGISTER", "UNDO"}

    exposure: bpy.props.FloatProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Exposure", description="Stops", default=0.0, soft_min=-3.0, soft_max=3.0
    )
    contrast: bpy.props.FloatProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Contrast", description="About mid grey", default=1.0, min=0.0, soft_max=3.0
    )
    saturation: bpy.props.FloatProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Saturation", description="0 is grey", default=1.0, min=0.0, soft_max=3.0
    )
    warmth: bpy.props.FloatProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Warmth", description="White balance from blue to orange", default=0.0, min=-2.0, max=2.0, soft_min=-1.0,
        soft_max=1.0,
    )  # fmt: skip
    magenta: bpy.props.FloatProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Magenta", description="White balance from green to magenta", default=0.0, min=-2.0, max=2.0,
        soft_min=-1.0, soft_max=1.0,
    )  # fmt: skip

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Change every selected cloud, from every direction of view alike; positions and binding are not touched."""
        change = ColourChange.of_photo(self.exposure, self.contrast, self.saturation, self.warmth, self.magenta)
        for ob in splat_objects(context):
            changed = change_colour(read_cloud(ob.data), change)
            _write_radiance(ob, changed.sh_dc, changed.sh_rest)
        return {"FINISHED"}


class EFFIGY_OT_merge(_CloudOperator, bpy.types.Operator):
    """Merge the selected clouds into the active one."""

    bl_idname = "effigy.merge"
    bl_label = "Merge Clouds"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Bring all into the space of the active one; bound clouds follow different meshes and are refused."""
        clouds = splat_objects(context)
        target = context.active_object if context.active_object in clouds else clouds[0]
        bound = next((ob for ob in clouds if is_bound(ob)), None)
        if len(clouds) < 2 or bound is not None:
            reason = f"{bound.name} is bound to a rig" if bound else "only one cloud is selected"
            self.report({"ERROR"}, f"Cannot merge: {reason}; select two or more free clouds")
            return {"CANCELLED"}
        try:
            into = np.linalg.inv(np.array(target.matrix_world, np.float64))
            parts = [transform_cloud(read_cloud(ob.data), into @ np.array(ob.matrix_world)) for ob in clouds]
        except (ValueError, np.linalg.LinAlgError) as error:
            self.report({"ERROR"}, f"Cannot merge: {error}")
            return {"CANCELLED"}
        replace_points(target, merge_clouds(parts))
        for ob in clouds:
            if ob != target:
                remove_cloud(ob)
        return {"FINISHED"}


class EFFIGY_OT_apply_transform(_CloudOperator, bpy.types.Operator):
    """Apply location, rotation and scale to the Gaussians themselves: sizes, orientations and view-dependent colour."""

    bl_idname = "effigy.apply_transform"
    bl_label = "Apply Transform"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Apply to every free selected cloud."""
        clouds = splat_objects(context)
        bound = next((ob for ob in clouds if is_bound(ob)), None)
        if bound is not None:
            self.report({"ERROR"}, f"{bound.name} is bound to a rig; transform the rig instead")
            return {"CANCELLED"}
        try:
            applied = [transform_cloud(read_cloud(ob.data), np.array(ob.matrix_world)) for ob in clouds]
        except ValueError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        for ob, cloud in zip(clouds, applied, strict=True):
            replace_points(ob, cloud)
            ob.matrix_world.identity()
        return {"FINISHED"}


def _write_radiance(ob: bpy.types.Object, sh_dc: np.ndarray, sh_rest: np.ndarray) -> None:
    base = ob.data.attributes[BASE]
    key = "vector" if base.data_type == "FLOAT4" else "color"
    values = np.empty(len(sh_dc) * 4, np.float32)
    base.data.foreach_get(key, values)
    values.reshape(-1, 4)[:, :3] = sh_dc
    base.data.foreach_set(key, values)
    for k in range(sh_rest.shape[1]):
        coefficients = np.ascontiguousarray(sh_rest[:, k], np.float32)
        ob.data.attributes[f"radiance:sh_{k}"].data.foreach_set("vector", coefficients.ravel())
    ob.data.update_tag()


def _points_in(mesh: bpy.types.Object, ob: bpy.types.Object, shape: str) -> np.ndarray:
    """[N] bool: Gaussians of a cloud, as it is posed, in a mesh or its bounding box.

    Raises:
        ValueError: If the mesh is flat or the cloud is hidden; one line.
    """
    if abs(mesh.matrix_world.determinant()) < 1e-18:
        raise ValueError(f"{mesh.name} has no volume; scale it up")
    to_mesh = np.array(mesh.matrix_world.inverted() @ ob.matrix_world)
    points = posed_positions(ob) @ to_mesh[:3, :3].T + to_mesh[:3, 3]
    return _in_box(mesh, points) if shape == "BOX" else _in_mesh(mesh, points)


def _in_box(mesh: bpy.types.Object, points: np.ndarray) -> np.ndarray:
    corners = np.array(mesh.bound_box)
    return ((points >= corners.min(axis=0)) & (points <= corners.max(axis=0))).all(axis=1)


def _in_mesh(mesh: bpy.types.Object, points: np.ndarray) -> np.ndarray:
    """[N] bool: a ray out of a closed mesh meets it an odd number of times."""
    tree = BVHTree.FromObject(mesh, bpy.context.evaluated_depsgraph_get())
    inside = _in_box(mesh, points)
    for k in np.flatnonzero(inside):
        origin, hits = Vector(points[k]), 0
        while True:
            place, *_ = tree.ray_cast(origin, _RAY)
            if place is None:
                break
            origin, hits = place + 1e-5 * _RAY, hits + 1
        inside[k] = hits % 2 == 1
    return inside
