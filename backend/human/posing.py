"""The person's proxy in a pose: one place where expression, skinning and twist come together."""

from __future__ import annotations

import numpy as np

from backend.human.lbs import apply_transforms, vertex_transforms
from backend.human.model import BodyModel
from backend.human.personal import Personal


def pose_proxy(
    body: BodyModel, rest_m: np.ndarray, joints_m: np.ndarray, pose: np.ndarray, translation_m: np.ndarray | None = None
) -> np.ndarray:
    """Skin rest vertices with the twist helpers, as Blender's armature does.

    Args:
        body: The body model, for its weights.
        rest_m: [V, 3] rest vertices.
        joints_m: [55, 3] rest joints.
        pose: [55, 3] axis-angle.
        translation_m: [3] added last.

    Returns:
        [V, 3] posed vertices.
    """
    matrices = vertex_transforms(joints_m, pose, body.twist.skin_weights, translation_m, body.twist)
    return apply_transforms(matrices, rest_m)


def photo_expression_m(personal: Personal) -> np.ndarray:
    """[V, 3] offsets that turn the neutral rest face into the photo's."""
    return personal.photo_rest_m() - personal.vertices_m


__all__ = ["photo_expression_m", "pose_proxy"]
