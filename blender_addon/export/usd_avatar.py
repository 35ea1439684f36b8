"""An avatar as USD: the skinned stand-in by Blender's own exporter, its Gaussians beside it through `pxr`.

Official builds of Blender bring `pxr`; the bpy wheels and some distributions do not, and there is no USD export there.
The Gaussians are a ParticleField3DGaussianSplat of OpenUSD 26.03; an older `pxr` writes the same prim without knowing
its schema.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bpy
import numpy as np

from ..cloud.edit import posed_cloud
from ..shared.axes import axes_to_blender
from ..shared.cloud_edits import transform_cloud
from ..shared.gaussians import GaussianCloud
from .clips import record_clips
from .stand_in import Clip, bound_colours, last_line, stand_in
from .vertex_colours import display_to_linear

_SPLATS = "Gaussians"


def has_usd() -> bool:
    """Whether this Blender can write USD with Gaussians: its exporter and `pxr` are there."""
    return bool(bpy.app.build_options.usd) and importlib.util.find_spec("pxr") is not None


def write_avatar_usd(path: Path, rig: bpy.types.Object, splats: bool = True, animated_splats: bool = False) -> None:
    """Write mesh, skeleton, blend shapes and the scene's motion, Y up, in metres; the file appears when it is whole.

    Args:
        path: A .usd, .usda or .usdc file.
        rig: An avatar's armature.
        splats: Also its Gaussians as they are shown, with what a viewer without them needs to see points.
        animated_splats: At every frame of the scene, not only at the current one.

    Raises:
        ValueError: If this Blender cannot, or fails; one line.
        OSError: If the file cannot be written.
    """
    if not has_usd():
        raise ValueError("this Blender has no USD for Python; use an official build, or export glTF")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} is not there; choose another")
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        clips = record_clips(rig, "SCENE")
        _write_mesh(part, rig, clips[0])
        _paint(part, rig)
        clouds = [ob for ob in rig.children_recursive if ob.type == "POINTCLOUD"] if splats else []
        if clouds:
            _add_splats(part, clouds, animated_splats)
        part.replace(path)
    except RuntimeError as error:
        raise ValueError(f"USD export failed: {last_line(error)}") from error
    finally:
        part.unlink(missing_ok=True)


def _write_mesh(path: Path, rig: bpy.types.Object, clip: Clip) -> None:
    wanted = {
        "filepath": str(path), "export_animation": True, "export_armatures": True, "only_deform_bones": True,
        "export_shapekeys": True, "export_uvmaps": True, "export_normals": True, "export_materials": True,
        "export_mesh_colors": True, "export_global_forward_selection": "NEGATIVE_Z", "export_global_up_selection": "Y",
        "convert_orientation": True, "root_prim_path": "/root", "evaluation_mode": "RENDER",
        "convert_scene_units": "METERS",
    }  # fmt: skip
    # The settings of the exporter differ between Blenders.
    known = bpy.ops.wm.usd_export.get_rna_type().properties.keys()
    settings = {name: value for name, value in wanted.items() if name in known}
    with stand_in(rig, [clip], unlit=False) as copy:
        layer = copy.scene.view_layers[0]
        with bpy.context.temp_override(scene=copy.scene, view_layer=layer):
            if bpy.ops.wm.usd_export(**settings) != {"FINISHED"} or not path.is_file():
                raise ValueError("Blender's USD exporter wrote nothing; see the system console")


def _paint(path: Path, rig: bpy.types.Object) -> None:
    """Colours of the vertices for viewers that show no materials, and read by the material for those that do."""
    colours = bound_colours(rig)
    if colours is None:
        return
    usd, geom, shade, sdf, vt = (
        importlib.import_module(f"pxr.{name}") for name in ("Usd", "UsdGeom", "UsdShade", "Sdf", "Vt")
    )
    stage = usd.Stage.Open(str(path))
    values = vt.Vec3fArray.FromNumpy(np.ascontiguousarray(display_to_linear(colours), np.float32))
    for prim in list(stage.Traverse()):
        if prim.IsA(geom.Mesh) and len(prim.GetAttribute("points").Get(0) or ()) == len(values):
            primvars = geom.PrimvarsAPI(prim)
            primvars.CreatePrimvar("displayColor", sdf.ValueTypeNames.Color3fArray, geom.Tokens.vertex).Set(values)
        surface = shade.Shader(prim)
        if surface and surface.GetIdAttr().Get() == "UsdPreviewSurface":
            reader = shade.Shader.Define(stage, prim.GetParent().GetPath().AppendChild("Colours"))
            reader.CreateIdAttr("UsdPrimvarReader_float3")
            reader.CreateInput("varname", sdf.ValueTypeNames.String).Set("displayColor")
            result = reader.CreateOutput("result", sdf.ValueTypeNames.Float3)
            surface.CreateInput("diffuseColor", sdf.ValueTypeNames.Color3f).ConnectToSource(result)
    stage.GetRootLayer().Save()


def _add_splats(path: Path, objects: Sequence[bpy.types.Object], animated: bool) -> None:
    usd, geom, sdf = (importlib.import_module(f"pxr.{name}") for name in ("Usd", "UsdGeom", "Sdf"))
    stage = usd.Stage.Open(str(path))
    root = stage.GetDefaultPrim() or stage.GetPrimAtPath("/root")
    prims = [stage.DefinePrim(f"{root.GetPath()}/{_SPLATS}_{k}", "ParticleField3DGaussianSplat") for k in
             range(len(objects))]  # fmt: skip
    # Blender turns its Z up to Y up by a rotation of the root; what is put under it is in Blender's axes there.
    turned = geom.Xformable(root).GetOrderedXformOps() if root.IsA(geom.Xformable) else []
    to_file = np.eye(4)
    if not turned:
        to_file[:3, :3] = axes_to_blender("y_up").T
    scene = bpy.context.scene
    before = scene.frame_current, scene.frame_subframe
    frames = range(scene.frame_start, scene.frame_end + 1) if animated else (None,)
    try:
        for frame in frames:
            if frame is not None:
                scene.frame_set(frame)
            code = usd.TimeCode.Default() if frame is None else usd.TimeCode(frame - scene.frame_start)
            for prim, ob in zip(prims, objects, strict=True):
                cloud = transform_cloud(posed_cloud(ob), to_file @ np.array(ob.matrix_world))
                _set_cloud(prim, cloud, code, usd, sdf)
    finally:
        if animated:
            scene.frame_set(before[0], subframe=before[1])
    stage.GetRootLayer().Save()


def _set_cloud(prim: Any, cloud: GaussianCloud, code: Any, usd: Any, sdf: Any) -> None:
    vt, kinds = importlib.import_module("pxr.Vt"), sdf.ValueTypeNames
    # Quaternions of pxr's arrays keep the real part last.
    xyzw = np.ascontiguousarray(np.roll(cloud.rotations_wxyz, -1, axis=1))
    extent = np.stack([cloud.positions_m.min(axis=0), cloud.positions_m.max(axis=0)])
    moving = {
        "positions": (kinds.Point3fArray, vt.Vec3fArray.FromNumpy(cloud.positions_m)),
        "orientations": (kinds.QuatfArray, vt.QuatfArray.FromNumpy(xyzw)),
        "scales": (kinds.Float3Array, vt.Vec3fArray.FromNumpy(cloud.scales_m)),
        "extent": (kinds.Float3Array, vt.Vec3fArray.FromNumpy(extent)),
    }
    for name, (kind, values) in moving.items():
        prim.CreateAttribute(name, kind).Set(values, code)
    harmonics = np.concatenate([cloud.sh_dc[:, None], cloud.sh_rest], axis=1)
    fixed = {
        "opacities": (kinds.FloatArray, vt.FloatArray.FromNumpy(np.ascontiguousarray(cloud.opacities))),
        "radiance:sphericalHarmonicsDegree": (kinds.Int, cloud.degree),
        "primvars:displayColor": (kinds.Color3fArray, vt.Vec3fArray.FromNumpy(cloud.colours.astype(np.float32))),
    }
    coefficients = vt.Vec3fArray.FromNumpy(np.ascontiguousarray(harmonics.reshape(-1, 3), np.float32))
    turning = cloud.degree > 0 and code != usd.TimeCode.Default()
    prim.CreateAttribute("radiance:sphericalHarmonicsCoefficients", kinds.Float3Array).Set(
        coefficients, code if turning else usd.TimeCode.Default()
    )
    for name, (kind, values) in fixed.items():
        attribute = prim.CreateAttribute(name, kind)
        if not attribute.HasAuthoredValue():
            attribute.Set(values)
