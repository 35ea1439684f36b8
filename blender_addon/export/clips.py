"""Which stretches of motion of an avatar are exported."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import bpy

from ..shared.skeleton import BONE_NAMES
from .stand_in import Clip, record_clip

ClipChoice = Literal["SCENE", "ACTIONS", "NONE"]

CLIP_CHOICES = [
    ("SCENE", "As Shown", "What plays from the scene's first to its last frame"),
    ("ACTIONS", "All Actions", "Every action of the avatar, each an animation of its own"),
    ("NONE", "None", "No animation"),
]

MAX_FRAMES = 20_000
"""Longer motions are refused: recording one takes minutes and gigabytes."""


def record_clips(rig: bpy.types.Object, choice: ClipChoice) -> list[Clip]:
    """Record the chosen motion of an avatar; what it plays is the same afterwards.

    Raises:
        ValueError: If there are no frames or too many; one line.
    """
    scene = bpy.context.scene
    if choice == "NONE":
        return []
    if choice == "SCENE":
        frames = _frames(scene.frame_start, scene.frame_end)
        current = rig.animation_data.action if rig.animation_data else None
        return [record_clip(current.name if current is not None else rig.name, rig, frames)]
    actions = list(actions_of(rig))
    if not actions:
        raise ValueError(f"{rig.name} has no actions; choose As Shown, or import a motion")
    with _Playing(rig) as playing:
        clips = []
        for action in actions:
            playing.reset()
            clips.append(_record_action(rig, action))
        return clips


def actions_of(rig: bpy.types.Object) -> Iterator[bpy.types.Action]:
    """Actions that move the rig's own bones; where Blender names whom an action is for, not those of others."""
    current = rig.animation_data.action if rig.animation_data else None
    path = f'pose.bones["{BONE_NAMES[0]}"]'
    for action in bpy.data.actions:
        if not any(curve.data_path.startswith(path) for curve in _curves(action)):
            continue
        names = {slot.identifier[2:] for slot in getattr(action, "slots", ())}
        if action == current or not names or rig.name in names:
            yield action


def _curves(action: bpy.types.Action) -> Iterator[bpy.types.FCurve]:
    """All curves, in the layout of every Blender from 4.2."""
    if not getattr(action, "layers", None):
        yield from getattr(action, "fcurves", ())
        return
    for layer in action.layers:
        for strip in layer.strips:
            for bag in strip.channelbags:
                yield from bag.fcurves


def _record_action(rig: bpy.types.Object, action: bpy.types.Action) -> Clip:
    rig.animation_data.action = action
    if getattr(action, "slots", None):
        rig.animation_data.action_slot = action.slots[0]
    first, last = (action.frame_range[k] for k in (0, 1))
    return record_clip(action.name, rig, _frames(math.floor(first), math.ceil(last)))


class _Playing:
    """Lets go of the NLA while actions are played one by one, and puts everything back.

    An action leaves its last values behind in what the next one has no keys for.
    """

    def __init__(self, rig: bpy.types.Object) -> None:
        self.rig = rig
        self.data = rig.animation_data or rig.animation_data_create()
        self.action = self.data.action
        self.slot = getattr(self.data, "action_slot", None)
        self.use_nla = self.data.use_nla
        self.sliders = {name: value for name, value in rig.items() if isinstance(value, float)}
        self.bones = {bone.name: bone.matrix_basis.copy() for bone in rig.pose.bones}

    def reset(self) -> None:
        """What has no keys stands as the artist left it."""
        for name, value in self.sliders.items():
            self.rig[name] = value
        for name, matrix in self.bones.items():
            self.rig.pose.bones[name].matrix_basis = matrix

    def __enter__(self) -> _Playing:
        self.data.use_nla = False
        return self

    def __exit__(self, *_: object) -> None:
        self.data.action, self.data.use_nla = self.action, self.use_nla
        if self.slot is not None:
            self.data.action_slot = self.slot
        self.reset()
        self.rig.update_tag(refresh={"OBJECT", "DATA", "TIME"})
        scene = bpy.context.scene
        scene.frame_set(scene.frame_current, subframe=scene.frame_subframe)


def _frames(first: int, last: int) -> range:
    frames = range(first, last + 1)
    if not frames:
        raise ValueError(f"there are no frames from {first} to {last}")
    if len(frames) > MAX_FRAMES:
        raise ValueError(f"{len(frames)} frames are too many, at most {MAX_FRAMES}; set the scene's first and last")
    return frames
