"""Text that fits the sidebar: Blender's labels do not wrap."""

from __future__ import annotations

import blf
import bpy

_FONT = 0
"""The interface's own."""

_MARGIN_PX = 64.0
"""What a panel and a box in it leave free at both sides, and the tabs of the sidebar, at scale 1."""

_ICON_PX = 20.0


def text_lines(
    layout: bpy.types.UILayout, context: bpy.types.Context, text: str, icon: str = "NONE", most: int = 12
) -> None:
    """A text over as many labels as the region's width needs.

    Args:
        layout: Gets one column.
        context: Of the drawing: its region says how wide a line may be.
        text: Any length; line breaks count as spaces.
        icon: Beside the first line.
        most: Lines; the last one ends in dots if there is more.
    """
    scale = context.preferences.system.ui_scale
    style = context.preferences.ui_styles[0].widget
    blf.size(_FONT, style.points * scale)
    width = context.region.width - (_MARGIN_PX + (_ICON_PX if icon != "NONE" else 0.0)) * scale
    lines = wrap(text, max(width, 60.0 * scale))
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + " ..."]
    column = layout.column(align=True)
    column.scale_y = 0.8
    for k, line in enumerate(lines):
        column.label(text=line, icon=icon if k == 0 else ("NONE" if icon == "NONE" else "BLANK1"))


def wrap(text: str, width_px: float) -> list[str]:
    """Break at spaces, and inside a word only where it is wider than a line (a path)."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if _width_px(joined) <= width_px:
            line = joined
            continue
        if line:
            lines.append(line)
        while _width_px(word) > width_px and len(word) > 1:
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or _width_px(word[:n]) <= width_px)
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    return [*lines, line] if line else lines


def _width_px(text: str) -> float:
    return blf.dimensions(_FONT, text)[0]
