"""The style of a portrait in the sidebar: presets, own words, a picture, and which way it will go."""

from __future__ import annotations

from typing import Any

import bpy

from . import session
from .backend_settings import is_installed
from .layouts import text_lines
from .shared.styles import STYLES, Way, expected_way

STYLE_PARAMETERS = ("style", "style_image", "strength", "negative", "way")
"""What this module draws, in its order; a method that has the first has them all."""


class EFFIGY_MT_styles(bpy.types.Menu):
    """Choose a ready-made style."""

    bl_label = "Styles"
    bl_idname = "EFFIGY_MT_styles"

    def draw(self, context: bpy.types.Context) -> None:
        """One entry per preset."""
        for style in STYLES.values():
            entry = self.layout.operator("wm.context_set_string", text=style.title)
            entry.data_path = f"scene.effigy.{context.scene.effigy.method}.style"
            entry.value = style.name


def portrait_way(context: bpy.types.Context, group: Any) -> tuple[Way, str]:
    """Which way the portrait that the panel shows will go, and why."""
    return expected_way(
        group.style,
        bool(group.style_image.strip()),
        group.way,
        installed=is_installed(context, "sd15"),
        editor=is_installed(context, "flux2-klein", "sd15-inpaint"),
        fast=_has_graphics_card(),
    )


def draw_style(layout: bpy.types.UILayout, context: bpy.types.Context, group: Any) -> None:
    """The style's rows.

    Args:
        layout: A column with split labels.
        context: Of the drawing.
        group: The method's property group, with `STYLE_PARAMETERS`.
    """
    way, line = portrait_way(context, group)
    words = layout.row(align=True)
    # the colours of a picture replace a preset's; an image model still reads the words
    words.active = way != "palette" or not group.style_image.strip()
    words.prop(group, "style")
    words.menu("EFFIGY_MT_styles", text="", icon="DOWNARROW_HLT")
    layout.prop(group, "style_image")
    layout.prop(group, "strength", slider=True)
    if way in ("sas", "edit"):
        layout.prop(group, "negative")
    layout.prop(group, "way")
    text_lines(layout.column(), context, line, "ERROR" if way == "none" else "INFO")


def _has_graphics_card() -> bool:
    """Whether the backend works on one, as far as it has said so."""
    queue = session.current().queue
    hello = None if queue is None else queue.process.hello
    return hello is not None and hello.device.kind != "cpu"


__all__ = ["STYLE_PARAMETERS", "EFFIGY_MT_styles", "draw_style", "portrait_way"]
