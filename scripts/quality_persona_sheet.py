"""Pictures to look at: truth, and what two ways of learning make of poses that were held out; controls too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from backend.splats.persona import PersonaAvatar
from scripts.quality_persona_controls import Distiller, with_controls
from scripts.quality_persona_oracle import Performance, Sight
from scripts.quality_persona_runs import picture

COLUMNS = 10
ENLARGED = 2


def write_sheet(
    file: Path, avatars: Mapping[str, PersonaAvatar], truth: Sequence[Sight], performance: Performance
) -> None:
    """Rows from above: truth, without, with, and with 96 controls in the network's place where there is a network."""
    shown = truth[:: max(len(truth) // COLUMNS, 1)][:COLUMNS]
    rows = [[sight.frame.image for sight in shown]]
    for avatar in avatars.values():
        branch = "refined" if avatar.deforms else "plain"
        rows.append([picture(avatar, sight.frame, branch) for sight in shown])
    network = avatars["with"]
    if network.deforms:
        poses = performance.poses[~performance.held_out]
        controls = Distiller(network, poses, 0, performance.figure.body.joint_names).controls(96)
        rows.append([with_controls(network, controls, sight.frame) for sight in shown])
    made = Image.fromarray(np.concatenate([np.concatenate([_bytes(p) for p in row], 1) for row in rows], 0))
    file.parent.mkdir(parents=True, exist_ok=True)
    made.resize((made.width * ENLARGED, made.height * ENLARGED)).save(file)


def _bytes(image: Tensor) -> np.ndarray:
    return np.round(255 * image.permute(1, 2, 0).clamp(0, 1).numpy()).astype(np.uint8)
