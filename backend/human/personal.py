"""The person's own proxy: the body model after it has been fitted to one person."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backend.human.camera import PinholeCamera
from backend.human.model import BodyModel
from blender_addon.shared.skeleton import JOINT_NAMES

HEAD_JOINTS = ("neck", "head", "jaw", "left_eye_smplhf", "right_eye_smplhf")


@dataclass(frozen=True)
class Personal:
    """The proxy in the rest pose (T-pose, neutral face) and how the photo shows it.

    Attributes:
        vertices_m: [V, 3] rest vertices with the person's shape and head, without clothes.
        joints_m: [55, 3] rest joints.
        pose: [55, 3] axis-angle of the photo; entry 0 is the global orientation.
        translation_m: [3] of the photo.
        camera: The photo's camera (working image).
        actions: [52] facial actions of the photo, 0..1, in the order of `FACIAL_ACTIONS`.
        action_offsets_m: [52, V, 3] the person's facial actions.
        photo_offset_m: [V, 3] what the photo's face has beyond neutral and actions, in rest space.
        hair: [H, W] 0..1 hair label in the working image.
        has_face: Whether face landmarks were found.
    """

    vertices_m: np.ndarray
    joints_m: np.ndarray
    pose: np.ndarray
    translation_m: np.ndarray
    camera: PinholeCamera
    actions: np.ndarray
    action_offsets_m: np.ndarray
    photo_offset_m: np.ndarray
    hair: np.ndarray
    has_face: bool

    def photo_rest_m(self) -> np.ndarray:
        """[V, 3] rest-pose vertices with the photo's facial expression."""
        expression = np.tensordot(self.actions, self.action_offsets_m, axes=1)
        return self.vertices_m + expression + self.photo_offset_m


def head_triangles(body: BodyModel) -> np.ndarray:
    """[T] bool: triangles of head and neck; the rest belongs to the clothes.

    A triangle is on the head where every vertex hangs at least half on `HEAD_JOINTS`.
    """
    columns = [JOINT_NAMES.index(name) for name in HEAD_JOINTS]
    on_head = body.skin_weights[:, columns].sum(axis=1) >= 0.5
    return on_head[body.triangles].all(axis=1)
