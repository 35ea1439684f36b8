"""The skinned stand-in of an avatar as glTF, by Blender's own exporter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import addon_utils
import bpy

from .stand_in import Clip, last_line, stand_in

_EXPORTER = "io_scene_gltf2"

_SETTINGS: dict[str, Any] = {
    "export_format": "GLB",
    "check_existing": False,
    "use_active_scene": True,
    "export_yup": True,
    "export_apply": False,
    "export_cameras": False,
    "export_lights": False,
    "export_extras": False,
    "export_materials": "EXPORT",
    "export_vertex_color": "ACTIVE",
    "export_skins": True,
    "export_influence_nb": 4,
    "export_def_bones": True,
    "export_leaf_bone": False,
    "export_rest_position_armature": True,
    "export_morph": True,
    "export_morph_normal": False,
    "export_morph_animation": True,
    "export_animation_mode": "NLA_TRACKS",
    "export_force_sampling": True,
    "export_frame_range": False,
    "export_anim_slide_to_zero": True,
    "export_anim_single_armature": False,
    "export_optimize_animation_size": False,
}
"""Of Blender's exporter, by all names that it has had since 4.2; a Blender gets those that it knows."""


def write_avatar_gltf(
    path: Path, rig: bpy.types.Object, clips: Sequence[Clip], unlit: bool = True, all_influences: bool = False
) -> None:
    """Write mesh, vertex colours, skin, morph targets and animations; the file appears when it is whole.

    Args:
        path: A `.glb` file.
        rig: An avatar's armature.
        clips: The animations.
        unlit: Show the colours as they are, without lights.
        all_influences: Weights of up to eight bones a vertex; else the four strongest, which every engine reads.

    Raises:
        ValueError: If this Blender has no glTF exporter, or it fails; one line.
        OSError: If the file cannot be written.
    """
    if not hasattr(bpy.types, "EXPORT_SCENE_OT_gltf") and addon_utils.enable(_EXPORTER) is None:
        raise ValueError("this Blender has no glTF exporter; enable the add-on glTF 2.0 format in the preferences")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} is not there; choose another")
    part = path.with_name(f".{path.stem}.part.glb")
    chosen = {"filepath": str(part), "export_animations": bool(clips), "export_all_influences": all_influences}
    known = bpy.ops.export_scene.gltf.get_rna_type().properties.keys()
    settings = {name: value for name, value in {**_SETTINGS, **chosen}.items() if name in known}
    try:
        with stand_in(rig, clips, unlit) as copy:
            layer = copy.scene.view_layers[0]
            with bpy.context.temp_override(scene=copy.scene, view_layer=layer):
                result = bpy.ops.export_scene.gltf(**settings)
        if result != {"FINISHED"} or not part.is_file():
            raise ValueError("Blender's glTF exporter wrote nothing; see the system console")
        part.replace(path)
    except RuntimeError as error:
        raise ValueError(f"Blender's glTF exporter failed: {last_line(error)}") from error
    finally:
        part.unlink(missing_ok=True)
