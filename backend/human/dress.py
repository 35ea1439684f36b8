"""Clothes: the body in the photo becomes the dressed person as geometry (cover.py makes the Gaussians)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backend.human.footwear import wrap_feet
from backend.human.garments import (
    FEET,
    FIRST_CLOTH,
    Part,
    Rings,
    find_rings,
    garment_codes,
    skirt_vertices,
    snap_to_hems,
    vertex_parts,
)
from backend.human.held import find_held_objects, outer_triangles, posed_body_m
from backend.human.lbs import apply_transforms
from backend.human.membranes import Membrane, build_membranes
from backend.human.model import BodyModel
from backend.human.personal import Personal, head_triangles
from backend.human.shell import average_operator, displacement_caps_m, mesh_links, solve_shell
from backend.human.skirt import Skirt, SkirtShape, build_skirt, legs_below, shape_skirt, without_specks
from backend.human.zbuffer import MeshView, view_mesh
from backend.perception.people import Label, Person
from blender_addon.shared.skeleton import JOINT_NAMES

if TYPE_CHECKING:
    from backend.context import Context

STAGE = "Dress the body"

SPACING_M = 0.0068
"""Between the discs of clothes."""

MEMBRANE_SPACING = 0.75
"""Of membranes, in that of the clothes; they are single sheets."""


@dataclass(frozen=True)
class Dressed:
    """The dressed proxy.

    Attributes:
        vertices_m: [V + M, 3] rest pose, with shell and shoes; M vertices of a skirt behind the body's V.
        posed_m: [V + M, 3] world, in the photo's pose.
        undressed_m: [V + M, 3] rest pose without the shell: where the limbs' axes and mirror partners are read.
        codes: [H, W] what each pixel shows, from `garment_codes`.
        rings: What covers each height of a limb.
        under_skirt: [V + M] bool, body vertices under a skirt or coat tails that hang round both legs.
        skirt: That skirt, or None.
        membranes: Sheets beside the shell.
    """

    vertices_m: np.ndarray
    posed_m: np.ndarray
    undressed_m: np.ndarray
    codes: np.ndarray
    rings: Rings
    under_skirt: np.ndarray
    skirt: Skirt | None
    membranes: tuple[Membrane, ...]

    def body(self, bare: BodyModel) -> BodyModel:
        """The body model with what the clothes add to its mesh."""
        return bare if self.skirt is None else self.skirt.worn_by(bare)

    def wearer(self, bare: Personal) -> Personal:
        """The fitted person with what the clothes add to the mesh."""
        return bare if self.skirt is None else self.skirt.worn_on(bare)


def dress(
    person: Person, body: BodyModel, personal: Personal, held: np.ndarray, outline: bool, context: Context
) -> Dressed:
    """Give the body its clothes' outline.

    Args:
        person: The photo.
        body: The body model.
        personal: The fitted person, undressed.
        held: [H, W] bool from `find_held_objects`.
        outline: Without it the body keeps its bare shape (no shell, shoes or membranes).
        context: Progress and cancelling.
    """
    context.progress(STAGE, 0, 3, "labels around the limbs")
    rest = np.asarray(personal.vertices_m, np.float64)
    parts = vertex_parts(body)
    outer, on_head = outer_triangles(body), head_triangles(body)
    triangles = body.triangles[outer]
    posed, transforms = posed_body_m(body, personal, rest)
    mask = (person.mask > 0.5) & ~held
    view = view_mesh(posed, triangles, personal.camera)
    codes = garment_codes(person.image, person.labels, mask)
    rings = find_rings(codes, mask, view, rest, parts, hands_seen(person))
    if not outline:
        plain = rest.astype(np.float32)
        none = np.zeros(len(rest), bool)
        return Dressed(plain, posed.astype(np.float32), plain, codes, rings, none, None, ())

    context.raise_if_cancelled()
    context.progress(STAGE, 1, 3, "outline")
    average = average_operator(mesh_links(body.triangles, len(rest), None, 1.0))
    feet = tuple(np.flatnonzero((parts == foot) & body.outer) for foot in FEET)
    shod = tuple(_is_shod(rings, rest, index, foot) for index, foot in zip(feet, FEET, strict=True))
    rest = snap_to_hems(rest, triangles, parts, rings)
    wrapped = wrap_feet(rest, feet, shod, average)
    posed = apply_transforms(transforms, wrapped)
    under, shape = _find_skirt(personal, rest, posed, parts, rings, codes, mask, view)
    fixed = np.zeros(len(rest), bool)
    fixed[body.triangles[on_head].ravel()] = True
    joints = body.skin_weights[:, : len(JOINT_NAMES)].argmax(axis=1)
    shell = solve_shell(
        posed, triangles, mask, held, personal.camera, displacement_caps_m(body.skin_weights, fixed), joints,
        rings.at(rest, parts), rings.observed_at(rest, parts), under,
    )  # fmt: skip
    dressed_rest = wrapped + _undo_directions(transforms, shell.normals * shell.displacement_m[:, None])
    dressed_posed = apply_transforms(transforms, dressed_rest)

    context.raise_if_cancelled()
    context.progress(STAGE, 2, 3, "loose parts")
    skirt = None if shape is None else build_skirt(shape, body, personal)
    if skirt is not None:
        body, personal = skirt.worn_by(body), skirt.worn_on(personal)
        dressed_rest = np.concatenate([dressed_rest, skirt.rest_m])
        dressed_posed = np.concatenate([dressed_posed, skirt.posed_m])
        rest = np.concatenate([rest, skirt.flat_m])
        under = np.concatenate([under, np.zeros(len(skirt.rest_m), bool)])
    membranes = _membranes(person, body, personal, mask, dressed_posed)
    context.progress(STAGE, 3, 3)
    vertices, posed_vertices, bare = (v.astype(np.float32) for v in (dressed_rest, dressed_posed, rest))
    return Dressed(vertices, posed_vertices, bare, codes, rings, under, skirt, membranes)


def _find_skirt(
    personal: Personal,
    rest_m: np.ndarray,
    posed_m: np.ndarray,
    parts: np.ndarray,
    rings: Rings,
    codes: np.ndarray,
    mask: np.ndarray,
    view: MeshView,
) -> tuple[np.ndarray, SkirtShape | None]:
    """Vertices [V] under a skirt and its shape; none and None without one."""
    under = skirt_vertices(rest_m, posed_m, parts, rings, mask, personal.camera)
    if not under.any():
        return under, None
    code = int(np.bincount(rings.at(rest_m, parts)[under]).argmax())
    # it begins at the waist, or where the trunk's garment does
    worn = (parts == Part.TRUNK) & (rings.at(rest_m, parts) == code)
    waist = float(personal.joints_m[JOINT_NAMES.index("spine1"), 1])
    under = under | (worn & (rest_m[:, 1] < waist))
    below = legs_below(rings, float(rest_m[under, 1].min()), code)
    cloth = mask & (codes >= FIRST_CLOTH) & ~np.isin(codes, below[below != code])
    cloth = without_specks(cloth, mask)
    shape = shape_skirt(under, rest_m, posed_m, parts, cloth, mask, view, personal.camera)
    return (under, shape) if shape is not None else (np.zeros_like(under), None)


def hands_seen(person: Person) -> tuple[bool, bool]:
    """Whether the left and the right hand's landmarks were found."""
    return len(person.left_hand_px) > 0, len(person.right_hand_px) > 0


def _is_shod(rings: Rings, rest_m: np.ndarray, index: np.ndarray, foot: Part) -> bool:
    """Whether the rings call most of a foot a shoe or anything else but skin."""
    labels = rings.at(rest_m[index], np.full(len(index), foot, np.uint8))
    return bool(len(index) and (labels != Label.SKIN).mean() > 0.5)


def _undo_directions(transforms: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Directions [V, 3] from the posed to the rest frame.

    Between two bones that turn far the blended matrix flattens; its singular values are held above 0.6 so that a small
    displacement does not become a spike in the T-pose.
    """
    u, s, vt = np.linalg.svd(transforms[:, :, :3])
    inverse = np.einsum("vji,vj,vkj->vik", vt, 1 / np.maximum(s, 0.6), u)
    return np.einsum("vij,vj->vi", inverse, directions)


def _membranes(
    person: Person, body: BodyModel, personal: Personal, mask: np.ndarray, posed_m: np.ndarray
) -> tuple[Membrane, ...]:
    """Sheets over the mask beside the shell; hair above the chin is the head's."""
    outer, on_head = outer_triangles(body), head_triangles(body)
    joints = body.skin_weights[:, : len(JOINT_NAMES)].argmax(axis=1)
    view = view_mesh(posed_m, body.triangles[outer], personal.camera)
    hair = (person.labels == Label.HAIR) | (personal.hair > 0.5)
    neck = posed_m[joints == JOINT_NAMES.index("neck")]
    chin_row = float(personal.camera.project(neck)[:, 1].min()) if len(neck) else 0.0
    above = (np.arange(mask.shape[0]) < chin_row)[:, None]
    return build_membranes(
        mask & ~(hair & above), hair, view, posed_m, body.triangles, outer, on_head, joints, personal.camera,
        SPACING_M * MEMBRANE_SPACING,
    )  # fmt: skip


__all__ = ["Dressed", "dress", "find_held_objects", "hands_seen"]
