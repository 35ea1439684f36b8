"""The default body's own head as a person: a rig, a proxy and a few Gaussians, without a photo."""

from __future__ import annotations

from functools import cache

import numpy as np

from backend.human.bust import Bust, cut_bust
from backend.human.camera import PinholeCamera
from backend.human.face_rig import IRIS, Eyeball, eyeball_of, set_blink, set_looks
from backend.human.model import BodyModel, Region, load_default_body
from backend.human.personal import Personal
from backend.splats.bound import BoundSplats, Kind
from blender_addon.shared.skeleton import FACIAL_ACTIONS

SKIN, EYE, INSIDE, HAIR = (0.8, 0.6, 0.5), (0.9, 0.9, 0.9), (0.3, 0.1, 0.1), (0.2, 0.15, 0.1)
"""Colours of the stand-in."""


@cache
def person() -> tuple[BodyModel, Personal]:
    """The default body with blinks that close."""
    body = load_default_body()
    rest, joints = (np.asarray(a, np.float64) for a in body.rest(np.zeros(20)))
    offsets = np.moveaxis(body.action_dirs_m.astype(np.float64), 2, 0).copy()
    eyes = [Eyeball(region, *eyeball_of(body, rest, region), np.array([0, 0, 1.0]), 0.0055) for region in IRIS]
    set_looks(offsets, rest, body, eyes)
    for eye in eyes:
        set_blink(offsets, rest, body, eye)
    camera = PinholeCamera(np.eye(4), 500, 500, 128, 128, 256, 256)
    return body, Personal(
        vertices_m=rest.astype(np.float32),
        joints_m=joints,
        pose=np.zeros((55, 3)),
        translation_m=np.zeros(3),
        camera=camera,
        actions=np.zeros(len(FACIAL_ACTIONS)),
        action_offsets_m=offsets.astype(np.float32),
        photo_offset_m=np.zeros_like(rest, dtype=np.float32),
        hair=np.zeros((256, 256), np.float32),
        has_face=True,
    )


def base_splats(body: BodyModel, personal: Personal) -> BoundSplats:
    """One Gaussian per triangle, in the colour of what it is; hair stands off the crown."""
    rest = personal.vertices_m.astype(np.float64)
    count = len(body.triangles)
    region = body.regions[body.triangles].min(axis=1)
    kind = np.full(count, int(Kind.SKIN))
    kind[(region == Region.LEFT_EYE) | (region == Region.RIGHT_EYE)] = Kind.EYE
    kind[region >= Region.MOUTH] = Kind.MOUTH
    offsets = np.zeros((count, 3))
    crown = rest[body.regions == Region.HEAD][:, 1].max()
    on_top = (region == Region.HEAD) & (rest[body.triangles].mean(axis=1)[:, 1] > crown - 0.05)
    kind[on_top], offsets[on_top, 2] = Kind.HAIR, 0.03
    table = {Kind.SKIN: SKIN, Kind.EYE: EYE, Kind.MOUTH: INSIDE, Kind.HAIR: HAIR}
    colours = np.array([table[Kind(k)] for k in kind])
    return BoundSplats(
        triangles=np.arange(count),
        bary=np.full((count, 3), 1 / 3),
        offsets_m=offsets,
        rotations_wxyz=np.tile([1.0, 0, 0, 0], (count, 1)),
        scales_m=np.tile([0.003, 0.003, 0.0005], (count, 1)),
        opacities=np.full(count, 0.9),
        colours=colours + np.random.default_rng(0).normal(0, 0.03, (count, 3)),
        confidence=np.ones(count),
        kind=kind,
        colour_gate=np.zeros(count),
        shape_gate=np.zeros(count),
        opacity_floor=np.zeros(count),
    )


@cache
def bust() -> Bust:
    """Cut from it."""
    body, personal = person()
    return cut_bust(body, personal, personal.vertices_m, base_splats(body, personal))
