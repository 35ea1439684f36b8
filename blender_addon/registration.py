"""What Blender is told about the add-on."""

from __future__ import annotations

import bpy

from . import edit_panels, panels, preferences, properties, rig_panels, session, setup, style_panel
from .cloud import engine
from .operators import (
    animate,
    bake,
    composite,
    crop_box,
    display,
    edit,
    export_avatar,
    export_splats,
    generate,
    import_avatar,
    import_splats,
    request_files,
    rig,
)
from .operators import setup as setup_operators

_CLASSES: tuple[type, ...] = (
    *properties.classes(),
    preferences.EFFIGY_AP_preferences,
    engine.EFFIGY_RE_splats,
    generate.EFFIGY_OT_generate,
    generate.EFFIGY_OT_cancel,
    generate.EFFIGY_OT_finish,
    generate.EFFIGY_OT_again,
    generate.EFFIGY_OT_bring,
    generate.EFFIGY_OT_dismiss,
    generate.EFFIGY_OT_clear_jobs,
    generate.EFFIGY_OT_open_log,
    generate.EFFIGY_OT_insert_result,
    generate.EFFIGY_OT_regenerate,
    generate.EFFIGY_OT_use_settings,
    generate.EFFIGY_OT_relink,
    generate.EFFIGY_OT_use_editor_image,
    generate.EFFIGY_OT_drop_photo,
    generate.EFFIGY_FH_photo,
    generate.EFFIGY_OT_show_preferences,
    request_files.EFFIGY_OT_add_files,
    request_files.EFFIGY_OT_remove_file,
    request_files.EFFIGY_OT_drop_more_photos,
    request_files.EFFIGY_FH_more_photos,
    *setup_operators.classes(),
    import_avatar.EFFIGY_OT_import_avatar,
    import_splats.EFFIGY_OT_import_splats,
    import_splats.EFFIGY_FH_splats,
    export_splats.EFFIGY_OT_export_splats,
    export_splats.EFFIGY_OT_export_sequence,
    export_avatar.EFFIGY_OT_export_gltf,
    export_avatar.EFFIGY_OT_export_usd,
    edit.EFFIGY_OT_crop,
    crop_box.EFFIGY_OT_add_crop_box,
    crop_box.EFFIGY_OT_crop_side,
    crop_box.EFFIGY_OT_apply_crop,
    crop_box.EFFIGY_OT_cancel_crop,
    edit.EFFIGY_OT_clean,
    edit.EFFIGY_OT_decimate,
    edit.EFFIGY_OT_colour,
    edit.EFFIGY_OT_merge,
    edit.EFFIGY_OT_apply_transform,
    animate.EFFIGY_OT_import_motion,
    animate.EFFIGY_OT_copy_motion,
    animate.EFFIGY_OT_export_bvh,
    animate.EFFIGY_FH_motion,
    bake.EFFIGY_OT_bake_motion,
    rig.EFFIGY_OT_snap_ik,
    rig.EFFIGY_OT_snap_fk,
    rig.EFFIGY_OT_reset_face,
    rig.EFFIGY_OT_reset_controls,
    rig.EFFIGY_OT_mirror_pose,
    display.EFFIGY_OT_display,
    composite.EFFIGY_OT_setup_compositing,
    style_panel.EFFIGY_MT_styles,
    panels.EFFIGY_PT_main,
    panels.EFFIGY_PT_jobs,
    panels.EFFIGY_PT_avatar,
    panels.EFFIGY_PT_files,
    rig_panels.EFFIGY_PT_rig,
    rig_panels.EFFIGY_PT_controls,
    rig_panels.EFFIGY_PT_face,
    panels.EFFIGY_PT_motion,
    panels.EFFIGY_PT_edit,
    edit_panels.EFFIGY_PT_crop,
    edit_panels.EFFIGY_PT_export,
    panels.EFFIGY_PT_display,
)


def register() -> None:
    """Register the classes and menus, and start the session."""
    for cls in _CLASSES:
        bpy.utils.register_class(cls)
    properties.attach()
    bpy.types.TOPBAR_MT_file_import.append(import_splats.draw_import_menu)
    bpy.types.TOPBAR_MT_file_export.append(export_splats.draw_export_menu)
    bpy.types.TOPBAR_MT_file_export.append(export_avatar.draw_export_menu)
    session.begin()
    setup.begin()


def unregister() -> None:
    """The reverse; Blender may have removed parts at exit already."""
    setup.end()
    session.end()
    bpy.types.TOPBAR_MT_file_import.remove(import_splats.draw_import_menu)
    bpy.types.TOPBAR_MT_file_export.remove(export_splats.draw_export_menu)
    bpy.types.TOPBAR_MT_file_export.remove(export_avatar.draw_export_menu)
    properties.detach()
    for cls in reversed(_CLASSES):
        if getattr(cls, "is_registered", True):
            bpy.utils.unregister_class(cls)
