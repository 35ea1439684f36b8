"""What the panel lets an artist choose: the photo, the method, and every parameter of its request dataclass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, get_args, get_type_hints

import bpy
import numpy as np

from .shared.methods import REQUESTS, SEVERAL, Request, request_from_json, request_to_json

_METHODS = [
    (method, method.title(), (request.__doc__ or "").strip().split("\n")[0].rstrip("."))
    for method, request in REQUESTS.items()
]
"""The enum's items: Blender does not keep their texts, so they have to live here."""


class EFFIGY_PG_file(bpy.types.PropertyGroup):
    """One of several files that a parameter names."""

    path: bpy.props.StringProperty(name="File", description="The file", subtype="FILE_PATH")  # pyright: ignore[reportInvalidTypeForm]


def _property(item: Field[Any], hint: Any) -> Any:
    """The Blender property of one parameter: label, tooltip, range and unit come from the dataclass."""
    label, unit = item.metadata["label"], item.metadata["unit"]
    # Blender itself writes metres, in the units that the artist has chosen; any other unit is part of the label.
    words = {
        "name": label if unit in ("", "m") else f"{label} ({unit})",
        "description": item.metadata["help"].rstrip("."),  # Blender ends a tooltip with a full stop of its own
    }
    low, high = item.metadata["minimum"], item.metadata["maximum"]
    limits = {name: value for name, value in (("min", low), ("max", high)) if value is not None}
    if hint == SEVERAL:
        return bpy.props.CollectionProperty(type=EFFIGY_PG_file, **words)
    if item.metadata.get("files"):
        return bpy.props.StringProperty(default=item.default, subtype="FILE_PATH", **words)
    if get_args(hint):
        choices = [(str(value), str(value).replace("_", " ").title(), "") for value in get_args(hint)]
        return bpy.props.EnumProperty(items=choices, default=item.default, **words)
    if hint is bool:
        return bpy.props.BoolProperty(default=item.default, **words)
    if hint is int:
        return bpy.props.IntProperty(default=item.default, **words, **limits)
    if hint is float:
        length = {"unit": "LENGTH"} if unit == "m" else {}
        return bpy.props.FloatProperty(default=item.default, **words, **limits, **length)
    return bpy.props.StringProperty(default=item.default, **words)


def _group_of(method: str, request: type[Request]) -> type[bpy.types.PropertyGroup]:
    """A property group with the parameters of a method."""
    hints = get_type_hints(request)
    annotations = {item.name: _property(item, hints[item.name]) for item in fields(request)}
    name = f"EFFIGY_PG_{method}"
    content = {"__annotations__": annotations, "__doc__": f"Parameters of the method {method}.", "__module__": __name__}
    return type(name, (bpy.types.PropertyGroup,), content)


METHOD_GROUPS: Mapping[str, type[bpy.types.PropertyGroup]] = {
    method: _group_of(method, request) for method, request in REQUESTS.items()
}
"""Method id -> its property group; a method that is added to REQUESTS appears in the panel by itself."""


class EFFIGY_PG_settings(bpy.types.PropertyGroup):
    """The panel's state, stored in the scene. Each method's group is added by `register_properties`."""

    image: bpy.props.PointerProperty(  # pyright: ignore[reportInvalidTypeForm]
        type=bpy.types.Image, name="Photo", description="The reference image"
    )
    method: bpy.props.EnumProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Method", items=_METHODS
    )


def classes() -> tuple[type, ...]:
    """What has to be registered, in order."""
    for method, group in METHOD_GROUPS.items():
        EFFIGY_PG_settings.__annotations__[method] = bpy.props.PointerProperty(type=group)
    return (EFFIGY_PG_file, *METHOD_GROUPS.values(), EFFIGY_PG_settings)


def attach() -> None:
    """Give every scene the panel's state."""
    bpy.types.Scene.effigy = bpy.props.PointerProperty(type=EFFIGY_PG_settings)


def detach() -> None:
    """Take it away again."""
    del bpy.types.Scene.effigy


def chosen_request(settings: Any) -> Request:
    """The request that the panel shows.

    Raises:
        ValueError: If a value is out of range; one line.
    """
    group = getattr(settings, settings.method)
    values = {item.name: _value(item, getattr(group, item.name)) for item in fields(REQUESTS[settings.method])}
    return request_from_json(settings.method, values)


def _value(item: Field[Any], shown: Any) -> Any:
    """A parameter's value from what the panel shows of it: files as whole paths, empty rows left out."""
    if not item.metadata.get("files"):
        return _exact(shown)
    if isinstance(shown, str):
        return bpy.path.abspath(shown)
    return tuple(bpy.path.abspath(row.path) for row in shown if row.path)


def _exact(value: Any) -> Any:
    """The number that was typed: Blender keeps 0.1 as the float32 0.10000000149, which may be out of range."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def show_request(settings: Any, method: str, request: Request) -> None:
    """Put a request into the panel."""
    settings.method = method
    group = getattr(settings, method)
    for name, value in request_to_json(request).items():
        if isinstance(value, list):
            show_files(getattr(group, name), value)
        else:
            setattr(group, name, value)


def show_files(rows: Any, paths: Sequence[str]) -> None:
    """Let a parameter's rows be these files and no others."""
    rows.clear()
    for path in paths:
        rows.add().path = path
