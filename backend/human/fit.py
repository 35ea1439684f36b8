"""Fits the body model to one person: pose, shape, translation and a gravity-aligned camera.

Method: maximum a posteriori by Levenberg-Marquardt over 91 parameters (fit_losses.py has the terms and where their
figures come from). Several starts run as one batch: yaw as seen and turned to both sides, with and without the prior
that people are upright. Points are folded with the skin weights (fit_model.py), so a step costs a few milliseconds and
the answer is that of the full model. Fingers follow the detected hands afterwards (hands.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation

from backend.context import Context
from backend.errors import UserError
from backend.human import fit_losses as terms
from backend.human.camera import PinholeCamera
from backend.human.fit_losses import Observation, Parts, PosePrior
from backend.human.fit_model import BODY_JOINTS, DTYPE, SHAPE_COUNT, FitModel, relaxed_fingers
from backend.human.hands import fit_hand, hand_columns, turn_unseen_hand
from backend.human.lbs import joint_transforms
from backend.human.least_squares import SolveSettings, minimise
from backend.human.model import BodyModel, Region
from backend.perception.labels import Label
from blender_addon.shared.skeleton import PARENTS, axis_angle_to_matrices

if TYPE_CHECKING:
    from backend.perception.people import Person

STAGE = "Fitting the body"
FACE_ERROR_LIMIT = 0.007  # ties worse than this share of the face's height are not used
# landmarks below each joint: the joint counts as unseen when none of them is seen
BELOW = {
    1: (25,), 2: (26,), 4: (27,), 5: (28,), 7: (31, 29), 8: (32, 30), 10: (31,), 11: (32,),
    16: (13,), 17: (14,), 18: (15,), 19: (16,), 20: (19, 17), 21: (20, 18),
}  # fmt: skip


@dataclass(frozen=True)
class FitSettings:
    """Choices of the fit.

    Attributes:
        focal_px: Focal length in px of the working image when the file says it; None takes `focal_share`.
        focal_share: Focal length over the long side when unknown (1.2 = 45 degrees; phones 0.7, portraits 2).
        yaw_starts_deg: Turns added to the yaw that mediapipe sees.
        release_ratio: The upright prior is dropped when the photo's cost with it exceeds that without by this factor.
        release_slack: And by this much more, in units of log probability: both are small where all fits well.
        keypoint_sd_m: How far mediapipe's landmark and the model's lie apart on the same person (renders).
        silhouette_points: Surface points that are held inside the mask.
    """

    focal_px: float | None = None
    focal_share: float = 1.2
    yaw_starts_deg: tuple[float, ...] = (0.0, -25.0, 25.0)
    release_ratio: float = 1.3
    release_slack: float = 3.0
    keypoint_sd_m: float = 0.02
    silhouette_points: int = 300


@dataclass(frozen=True)
class BodyFit:
    """The fitted body. Posed vertex = LBS(rest(betas), pose) + translation_m, world Y up, lowest sole at y = 0.

    Attributes:
        betas: [20] float32 shape numbers.
        pose: [55, 3] float32 axis-angle; entry 0 is the global orientation.
        translation_m: [3] float32.
        camera: The photo's camera (working image), roll 0, pitch fitted.
        loss: Negative log posterior of the photo's part.
        keypoint_error_px: Mean distance of the seen landmarks.
        lean_prior_used: Whether the upright prior was kept.
        warnings: What the user should know.
    """

    betas: np.ndarray
    pose: np.ndarray
    translation_m: np.ndarray
    camera: PinholeCamera
    loss: float
    keypoint_error_px: float
    lean_prior_used: bool
    warnings: tuple[str, ...]


def fit_body(person: Person, body: BodyModel, context: Context, settings: FitSettings = FitSettings()) -> BodyFit:
    """Fit the body model to a person.

    Args:
        person: What perception found; needs pose landmarks.
        body: The body model.
        context: Progress and cancelling.
        settings: Choices; the defaults are the product's.

    Returns:
        The fit in a world whose y axis is against gravity.

    Raises:
        UserError: If hardly any landmark is visible.
    """
    context.progress(STAGE, 0, 4, "preparing")
    model = FitModel(body, PARENTS)
    observation, unseen = observe(person, body, settings)
    parts = make_parts(model, body, settings)
    prior = terms.pose_prior(unseen, _hanging_legs(model))
    starts, switches = _starts(person, observation, parts, prior, settings)
    solve = _Solver(observation, parts, prior, context)
    x, cost = solve.run(starts, switches, rounds=((30.0, 1.0, 12), (4.0, 0.3, 20)), stage=1)
    x, switches, lean_used = _choose(x, cost, switches, solve, settings)
    context.progress(STAGE, 2, 4, "silhouette")
    x, _ = solve.run(x[None], switches[None], rounds=((4.0, 0.3, 12),), stage=2, silhouette=True)
    return _result(x[0], switches, person, body, solve, lean_used, context)


class _Solver:
    """The residuals of one photo, ready for `minimise`."""

    def __init__(self, seen: Observation, parts: Parts, prior: PosePrior, context: Context) -> None:
        self.seen, self.parts, self.prior, self._context = seen, parts, prior, context

    def residuals(self, x: torch.Tensor, switches: torch.Tensor, silhouette: bool) -> torch.Tensor:
        """All residuals of one problem."""
        body = terms.pose_body(x, self.parts)
        rows = [
            terms.photo_residuals(body, x, self.parts, self.seen, switches),
            terms.gravity_residuals(body, x, self.parts, self.seen, switches[terms.SWITCH_UPRIGHT]),
            terms.body_residuals(body, x, self.parts, self.prior),
        ]
        if silhouette:
            rows.append(terms.silhouette_residuals(body, self.parts, self.seen))
        return torch.cat(rows)

    def photo_cost(self, x: torch.Tensor, switches: torch.Tensor) -> float:
        """Cost of landmarks, face and bone directions alone."""
        body = terms.pose_body(x, self.parts)
        return 0.5 * float(terms.photo_residuals(body, x, self.parts, self.seen, switches).square().sum())

    def run(
        self,
        x: torch.Tensor,
        switches: torch.Tensor,
        rounds: tuple[tuple[float, float, int], ...],
        stage: int,
        silhouette: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Solve [B, P] problems in rounds of (robust scale, weight of flat directions, steps), coarse to fine."""

        def on_step(step: int) -> None:
            self._context.raise_if_cancelled()
            self._context.progress(STAGE, stage + min(step / 40.0, 0.9), 4, "pose")

        def function(y: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            return self.residuals(y, s, silhouette)

        cost = torch.zeros(len(x), dtype=DTYPE)
        for robust, flat, steps in rounds:
            switches[:, terms.SWITCH_ROBUST] = robust
            switches[:, terms.SWITCH_FLAT] = flat
            x, cost = minimise(function, x, switches, SolveSettings(iterations=steps), on_step)
        return x, cost


def observe(person: Person, body: BodyModel, settings: FitSettings) -> tuple[Observation, np.ndarray]:
    """Turn landmarks into weighted observations.

    Returns:
        The observation and [22] bool, joints whose limb the photo does not show.

    Raises:
        UserError: If fewer than five landmarks are visible.
    """
    height, width = person.image.shape[:2]
    keypoints = np.asarray(person.keypoints_px, np.float64)
    margin = 0.01 * max(height, width)
    inside = ((keypoints > -margin) & (keypoints < np.array([width, height]) + margin)).all(1)
    visibility = np.clip(person.keypoint_visibility, 0.0, 1.0) * inside
    if (visibility > 0.3).sum() < 5:
        raise UserError("No body was found in the photo. Use one that shows at least head and shoulders.", 2)
    world = np.asarray(person.keypoints_world_m, np.float64)
    pixels_per_m, _ = _image_scale(keypoints, world, visibility)
    spread = np.asarray(person.keypoint_spread_px, np.float64)
    sd = np.sqrt((settings.keypoint_sd_m * pixels_per_m) ** 2 + spread**2)
    tied = np.asarray(body.pose_keypoints.sum(axis=1)).ravel() > 0.5  # a user's model may lack some points
    precision = np.where((visibility > 0.3) & tied, visibility / sd, 0.0)
    precision[list(terms.LANDMARK_PRECISION)] *= list(terms.LANDMARK_PRECISION.values())
    hidden = hidden_hands(person)
    for side in np.flatnonzero(hidden):
        precision[[15 + side, 17 + side, 19 + side, 21 + side]] *= 0.5  # mediapipe guesses where they are
    bones, directions, bone_precision = _bone_directions(world, keypoints / pixels_per_m, visibility, hidden)
    face, face_precision = _face(person, body, pixels_per_m)
    unseen = np.zeros(BODY_JOINTS, bool)
    for joint, marks in BELOW.items():
        unseen[joint] = all(visibility[m] < 0.4 for m in marks)
    feet = np.array([visibility[i] for i in (*terms.HEELS, *terms.TOES)])
    focal = settings.focal_px or settings.focal_share * max(height, width)
    mask = np.asarray(person.mask) > 0.5
    distance = torch.tensor(distance_transform_edt(~mask), dtype=DTYPE) if mask.any() else None
    observation = Observation(
        focal_px=focal,
        centre_px=torch.tensor([width / 2, height / 2], dtype=DTYPE),
        keypoints_px=torch.tensor(keypoints, dtype=DTYPE),
        keypoint_precision=torch.tensor(precision, dtype=DTYPE),
        bones=torch.tensor(bones),
        bone_directions=torch.tensor(directions, dtype=DTYPE),
        bone_precision=torch.tensor(bone_precision, dtype=DTYPE),
        shoulders_yaw_rad=float(np.arctan2(*(world[11] - world[12])[[2, 0]])),
        feet_yaw_rad=torch.tensor(_feet_yaw(world, keypoints, pixels_per_m, width / 2, focal), dtype=DTYPE),
        face_px=torch.tensor(face, dtype=DTYPE),
        face_precision=face_precision,
        feet_seen=torch.tensor(np.where(feet > 0.5, feet, 0.0), dtype=DTYPE),
        distance_px=distance,
        pixels_per_m=pixels_per_m,
        pitch_rad=_camera_pitch(person, world, keypoints / pixels_per_m, visibility),
    )
    return observation, unseen


def _image_scale(keypoints: np.ndarray, world: np.ndarray, visibility: np.ndarray) -> tuple[float, np.ndarray]:
    """Scaled orthographic fit of world landmarks to the image: px per metre and the pelvis' pixel [2]."""
    weight = np.where(visibility > 0.3, visibility, 0.0)[:, None]
    centre_px = (weight * keypoints).sum(0) / weight.sum()
    centre_m = (weight * world[:, :2]).sum(0) / weight.sum()
    a, b = keypoints - centre_px, world[:, :2] - centre_m
    scale = np.sqrt((weight * a**2).sum() / max((weight * b**2).sum(), 1e-9))
    return float(scale), centre_px - scale * centre_m


def hidden_hands(person: Person) -> np.ndarray:
    """[2] bool: left, right hand lies behind the body (on the hip, in a pocket).

    mediapipe calls such hands visible. Where it says a hand is, the pixels are clothes, and the other hand shows
    skin (otherwise they may be gloves).
    """
    height, width = person.labels.shape
    radius = max(2, int(0.01 * max(height, width)))
    skin, cloth = np.zeros(2), np.zeros(2)
    for side in (0, 1):
        windows = []
        for mark in (15 + side, 17 + side, 19 + side):
            x, y = (int(v) for v in person.keypoints_px[mark])
            if 0 <= x < width and 0 <= y < height:
                window = person.labels[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
                windows.append(window.ravel())
        if windows:
            pixels = np.concatenate(windows)
            skin[side] = (pixels == Label.SKIN).mean()
            cloth[side] = np.isin(pixels, (Label.UPPER, Label.LOWER)).mean()
    found = np.array([len(person.left_hand_px), len(person.right_hand_px)]) > 0
    return ~found & (skin < 0.1) & (cloth > 0.6) & (skin[::-1] > 0.3)


def _bone_directions(
    world: np.ndarray, flat_m: np.ndarray, visibility: np.ndarray, hidden: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions of `terms.BONES` in the camera's frame and how well each component is known.

    `flat_m` [33, 2]: landmarks of the picture in mediapipe's metres.
    """
    pairs = np.array([bone[:2] for bone in terms.BONES])
    gain, offset, sd = np.array([bone[2:] for bone in terms.BONES]).T
    d = world[pairs[:, 1]] - world[pairs[:, 0]]
    d = d / np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-6)
    lines = gain == terms.LINE_GAIN
    gain[lines] += terms.LINE_GAIN_FRONTAL * np.exp(-((d[lines, 2] / terms.LINE_FRONTAL) ** 2))
    arms = _arm_depths(world, d, flat_m)
    d[:, 2] = gain * d[:, 2] + offset
    d[: terms.ARMS, 2] = arms
    d[:, 2] = np.clip(d[:, 2], -0.999, 0.999)
    for side in np.flatnonzero(hidden):
        for first, (dz, dz_sd) in zip((11 + side, 13 + side), terms.HIDDEN_ARM, strict=True):
            row = int(np.flatnonzero((pairs[:, 0] == first) & (pairs[:, 1] == first + 2))[0])
            d[row, 2], sd[row] = dz, dz_sd
    flat = np.linalg.norm(d[:, :2], axis=1, keepdims=True)
    d[:, :2] *= np.sqrt(1.0 - d[:, 2:] ** 2) / np.maximum(flat, 1e-6)
    seen = visibility[pairs].min(1)
    # behind 0.5 mediapipe guesses; the trunk it always sees well enough when the shoulders are there
    share = np.where(seen > 0.5, seen, 0.0)
    precision = np.stack([share / 0.3, share / 0.3, share / sd], axis=1)
    return pairs, d, precision


def _arm_depths(world: np.ndarray, directions: np.ndarray, flat_m: np.ndarray) -> np.ndarray:
    """[4] dz of left and right upper arm, left and right forearm by `terms.ARM_DZ`.

    `directions` [M, 3] are mediapipe's own, `flat_m` [33, 2] the picture's landmarks in mediapipe's metres.
    """
    made = np.zeros(terms.ARMS)
    turn = float(np.arctan2(*(world[11] - world[12])[[2, 0]]))
    for part, (slopes, usual) in enumerate(zip(terms.ARM_DZ, terms.ARM_LENGTHS_M, strict=True)):
        for side, outside in ((0, 1.0), (1, -1.0)):
            first, last = 11 + 2 * part + side, 13 + 2 * part + side
            length = float(np.linalg.norm(flat_m[last] - flat_m[first])) / usual
            out = outside * (flat_m[15 + side] - flat_m[(23, 13)[part] + side])[0]
            row = 2 * part + side
            made[row] = np.dot(slopes, (directions[row, 2], min(length, 1.2) - 1.0, out, outside * turn, 1.0))
    return made


def _camera_pitch(person: Person, world: np.ndarray, flat_m: np.ndarray, visibility: np.ndarray) -> tuple[float, float]:
    """Pitch of the camera above a standing person and its standard deviation, radians.

    Legs, feet and head tilt with the camera; without feet in the picture only the usual pitch is known.
    """
    if visibility[[11, 12, *terms.ANKLES, *terms.HEELS, *terms.TOES]].min() < 0.5:
        return float(terms.PITCH_MEAN_RAD), float(terms.PITCH_SD_RAD)
    constant, body, feet, nose, face = terms.PITCH_CLUES_DEG
    down = 0.5 * (world[27] + world[28] - world[11] - world[12])
    toes = 50.0 * (flat_m[list(terms.TOES)] - flat_m[list(terms.HEELS)]).sum(0)[1]
    degrees = constant + body * down[2] / np.linalg.norm(down) + feet * toes
    head = terms.PITCH_HEAD_DEG
    if len(person.face_px) >= 468:
        brow, chin = np.asarray(person.face_px, np.float64)[[10, 152]]  # top of the forehead
        ears = 0.5 * (flat_m[terms.LEFT_EAR] + flat_m[terms.RIGHT_EAR])
        seen = nose * 100.0 * (flat_m[terms.NOSE] - ears)[1] + face * (brow - chin)[2] / np.linalg.norm(brow - chin)
        head += float(np.clip(seen - head, -terms.PITCH_HEAD_LIMIT_DEG, terms.PITCH_HEAD_LIMIT_DEG))
    return float(np.radians(degrees + head)), float(terms.PITCH_CLUES_SD_RAD)


def _feet_yaw(
    world: np.ndarray, keypoints: np.ndarray, pixels_per_m: float, centre_x: float, focal: float
) -> np.ndarray:
    """[2] direction of left and right foot about the vertical, radians, 0 towards the camera, turned to +x positive.

    A foot's width in the picture over its length gives the sine, three times as exactly as mediapipe's depth; depth
    says front or back, and takes over where the sine is flat.
    """
    heels, toes = list(terms.HEELS), list(terms.TOES)
    wide = (keypoints[toes, 0] - keypoints[heels, 0]) / (terms.FOOT_LENGTH_M * pixels_per_m)
    ray = np.arctan2(0.5 * (keypoints[toes, 0] + keypoints[heels, 0]) - centre_x, focal)
    seen = np.arcsin(np.clip(wide, -1.0, 1.0)) - ray
    ahead = world[toes] - world[heels]
    deep = np.arctan2(ahead[:, 0], -ahead[:, 2]) + np.array([-terms.FOOT_SPLAY_RAD, terms.FOOT_SPLAY_RAD])
    mean = abs(float(np.angle(np.exp(1j * deep).sum())))
    share = float(np.clip((mean - terms.FOOT_SIDEWAYS_RAD[0]) / np.ptp(terms.FOOT_SIDEWAYS_RAD), 0.0, 1.0))
    return np.angle((1.0 - share) * np.exp(1j * seen) + share * np.exp(1j * deep))


def _face(person: Person, body: BodyModel, pixels_per_m: float) -> tuple[np.ndarray, float]:
    """Face landmarks [F, 2] used by the fit and their precision; they belong to `face_rows`."""
    if len(person.face_px) < 468:
        return np.zeros((0, 2)), 0.0
    rows = face_rows(body)
    # neighbours share mediapipe's error: about 12 independent points
    share = (12.0 / max(len(rows), 12)) ** 0.5
    return np.asarray(person.face_px, np.float64)[rows, :2], share / (terms.FACE_SD_M * pixels_per_m)


def face_rows(body: BodyModel) -> np.ndarray:
    """Face landmarks that are well tied, thinned to about sixty, without lips and lids (they move)."""
    good = np.flatnonzero(np.asarray(body.face_landmark_error) <= FACE_ERROR_LIMIT)
    return good[::7]


def make_parts(model: FitModel, body: BodyModel, settings: FitSettings) -> Parts:
    """Point sets and rest measures."""
    skin = np.flatnonzero(body.outer & (body.regions <= Region.HEAD))
    chosen = skin[:: max(1, len(skin) // settings.silhouette_points)]
    count = len(body.template_m)
    surface = csr_matrix((np.ones(len(chosen)), (np.arange(len(chosen)), chosen)), shape=(len(chosen), count))
    joints = model.rest_joints(torch.zeros(SHAPE_COUNT, dtype=DTYPE)).numpy()
    keypoints = np.asarray(body.pose_keypoints @ body.template_m, np.float64)
    pitch = tuple(
        float(np.arctan2(joints[b][2] - joints[a][2], joints[b][1] - joints[a][1])) for a, b, *_ in terms.SPINE_SEGMENTS
    )
    sole = float(body.template_m[:, 1].min())
    feet = np.array([keypoints[i][1] - sole for i in (*terms.HEELS, *terms.TOES)])
    return Parts(
        model=model,
        keypoints=model.points(body.pose_keypoints),
        face=model.points(csr_matrix(body.face_landmarks)[face_rows(body)]),
        surface=model.points(surface),
        rest_pitch_rad=pitch,
        sole_height_m=torch.tensor(feet, dtype=DTYPE),
        rest_balance_m=float(joints[0][2] - joints[7:9, 2].mean()),
        torso_axes_m=_torso_axes(body, joints),
    )


def _torso_axes(body: BodyModel, joints: np.ndarray) -> tuple[float, float, float]:
    """Half width and half depth of the torso around spine1 to spine3 and its centre ahead of spine2, metres."""
    trunk = body.skin_weights[:, [0, 3, 6, 9]].sum(1) > 0.8
    band = trunk & (body.template_m[:, 1] > joints[3, 1]) & (body.template_m[:, 1] < joints[9, 1])
    low, high = np.percentile(body.template_m[band], [3, 97], axis=0)
    middle = 0.5 * (low[2] + high[2])
    return float(0.5 * (high[0] - low[0])), float(0.5 * (high[2] - low[2])), float(middle - joints[6, 2])


def _hanging_legs(model: FitModel) -> tuple[float, float]:
    """Turn of each hip about z that puts the ankle below it."""
    joints = model.rest_joints(torch.zeros(SHAPE_COUNT, dtype=DTYPE)).numpy()
    legs = [joints[7 + side] - joints[1 + side] for side in (0, 1)]
    return (-float(np.arctan2(legs[0][0], -legs[0][1])), -float(np.arctan2(legs[1][0], -legs[1][1])))


def _starts(
    person: Person, seen: Observation, parts: Parts, prior: PosePrior, settings: FitSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """First parameters [B, P] and switches [B, 3]: every yaw start with and without the upright prior."""
    world = np.asarray(person.keypoints_world_m, np.float64)
    keypoints = np.asarray(person.keypoints_px, np.float64)
    across = (world[11] - world[12]) + (world[23] - world[24])
    yaw = float(np.arctan2(across[2], across[0]))
    _, pelvis_px = _image_scale(keypoints, world, (seen.keypoint_precision > 0).double().numpy())
    offset = (torch.tensor(pelvis_px, dtype=DTYPE) - seen.centre_px) / seen.focal_px
    x = torch.zeros(terms.PARAMETERS, dtype=DTYPE)
    x[terms.PLACE] = torch.tensor([*offset.tolist(), float(np.log(seen.focal_px / seen.pixels_per_m))], dtype=DTYPE)
    x[terms.POSE] = _start_pose(seen, prior, yaw)
    x[terms.FLOOR] = -0.9
    starts, switches = [], []
    for upright in (1.0, 0.0):
        for turn in settings.yaw_starts_deg:
            start = x.clone()
            start[terms.YAW] = yaw + np.radians(turn)
            starts.append(start)
            switches.append([upright, 0.0, 0.0])
    return torch.stack(starts), torch.tensor(switches, dtype=DTYPE)


def _start_pose(seen: Observation, prior: PosePrior, yaw: float) -> torch.Tensor:
    """[63] the prior's mean, but with the arms where mediapipe sees them.

    From a hanging arm the way to one that points at the camera is as long as to one that points away, and the search
    would stay in the wrong one.
    """
    pose = prior.mean.numpy().copy()
    for side, sign in ((0, 1.0), (1, -1.0)):
        if min(float(seen.bone_precision[row, 2]) for row in (side, 2 + side)) <= 0.0:
            continue
        c, s = np.cos(yaw), np.sin(yaw)
        # camera axes to world (y and z turn over), then to the body's own
        to_body = np.array([[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]]) @ np.diag([1.0, -1.0, -1.0])
        upper, fore = (to_body @ seen.bone_directions[row].numpy() for row in (side, 2 + side))
        down = Rotation.from_rotvec(prior.mean[15 + side].numpy()).as_matrix()
        # the elbow bends towards the local z axis; an almost straight arm keeps the prior's roll
        bend = fore - (fore @ upper) * upper + 0.2 * down[:, 2]
        bend -= (bend @ upper) * upper
        bend /= max(float(np.linalg.norm(bend)), 1e-6)
        along = sign * upper
        pose[15 + side] = _axis_angle(np.stack([along, np.cross(bend, along), bend], axis=1))
        pose[17 + side] = [0.0, -sign * float(np.arccos(np.clip(upper @ fore, -1.0, 1.0))), 0.0]
    return torch.tensor(pose.reshape(-1), dtype=DTYPE)


def _choose(
    x: torch.Tensor, cost: torch.Tensor, switches: torch.Tensor, solve: _Solver, settings: FitSettings
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """The best start, upright unless the photo contradicts: (parameters [P], switches [3], prior kept)."""
    upright = switches[:, terms.SWITCH_UPRIGHT] > 0.5
    best = {}
    for kind in (True, False):
        rows = torch.nonzero(upright == kind)[:, 0]
        best[kind] = int(rows[cost[rows].argmin()])
    with_prior, without = (solve.photo_cost(x[best[kind]], switches[best[kind]]) for kind in (True, False))
    keep = with_prior <= settings.release_ratio * without + settings.release_slack
    return x[best[keep]], switches[best[keep]], keep


def _result(
    x: torch.Tensor,
    switches: torch.Tensor,
    person: Person,
    body: BodyModel,
    solve: _Solver,
    lean_used: bool,
    context: Context,
) -> BodyFit:
    """World frame with the lowest sole on the floor, the camera, and the fingers."""
    with torch.no_grad():
        posed = terms.pose_body(x, solve.parts)
        root = terms.root_rotation(x)
        betas = np.zeros(body.shape_dirs_m.shape[2])
        betas[:SHAPE_COUNT] = x[terms.BETAS].numpy()
        rest_pelvis = posed.unposed[1][0].numpy()
        pose = relaxed_fingers()
        pose[0] = _axis_angle(root.numpy())
        pose[1:BODY_JOINTS] = x[terms.POSE].reshape(-1, 3).numpy()
        feet = torch.stack([posed.keypoints_m[i] for i in (*terms.HEELS, *terms.TOES)])
        lift = -float((feet[:, 1] - solve.parts.sole_height_m).min())
        pixels = terms.project(posed.to_camera(posed.keypoints_m), solve.seen)
        weight = solve.seen.keypoint_precision
        error = float(((pixels - solve.seen.keypoints_px).norm(dim=1) * weight).sum() / weight.sum())
    translation = np.array([0.0, lift, 0.0]) - rest_pelvis
    w2c = np.eye(4)
    w2c[:3, :3] = posed.w2c.numpy()
    w2c[:3, 3] = posed.shift_m.numpy() - w2c[:3, :3] @ np.array([0.0, lift, 0.0])
    height, width = person.image.shape[:2]
    focal = float(solve.seen.focal_px)
    centre = solve.seen.centre_px.tolist()
    warnings = []
    if not lean_used:
        warnings.append("The photo shows no upright stance: the body's lean is uncertain.")
    if error > 0.03 * solve.seen.pixels_per_m * 1.7:
        warnings.append("The body fits the photo poorly; check the pose and correct the rig where needed.")
    camera = PinholeCamera(w2c, focal, focal, centre[0], centre[1], width, height)
    pose, hand_warnings = _pose_hands(pose, betas, translation, camera, person, body, context)
    return BodyFit(
        betas=betas.astype(np.float32),
        pose=pose.astype(np.float32),
        translation_m=translation.astype(np.float32),
        camera=camera,
        loss=solve.photo_cost(x, switches),
        keypoint_error_px=error,
        lean_prior_used=lean_used,
        warnings=(*warnings, *hand_warnings),
    )


def _pose_hands(
    pose: np.ndarray,
    betas: np.ndarray,
    translation: np.ndarray,
    camera: PinholeCamera,
    person: Person,
    body: BodyModel,
    context: Context,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Wrists and fingers from the hand landmarks where they fit a hand; the relaxed curl elsewhere."""
    hidden = hidden_hands(person)
    rest = body.rest(betas)
    pose = pose.copy()
    warnings = []
    rotations, positions = joint_transforms(torch.tensor(rest[1], dtype=DTYPE), torch.tensor(pose, dtype=DTYPE))
    hands = (
        ("left", person.left_hand_px, person.left_hand_world_m),
        ("right", person.right_hand_px, person.right_hand_world_m),
    )
    for side, (name, pixels, world) in enumerate(hands):
        context.raise_if_cancelled()
        context.progress(STAGE, 3 + 0.5 * side, 4, f"{name} hand")
        wrist, fingers = hand_columns(side)[0], hand_columns(side)[1:]
        forearm, at = rotations[18 + side].numpy(), positions[wrist].numpy() + translation
        if len(pixels) != 21:
            if not hidden[side]:
                other = np.isin(person.labels, (Label.UPPER, Label.LOWER, Label.OTHER))
                start = positions[18 + side].numpy() + translation
                turn, pose[wrist] = turn_unseen_hand(body, rest, side, forearm, start, pose[wrist], other, camera)
                pose[18 + side] = _axis_angle(axis_angle_to_matrices(pose[18 + side]) @ turn)
            continue
        found = fit_hand(body, rest, side, forearm, at, pose[wrist], pixels, world, camera)
        if found is None:
            warnings.append(f"The {name} hand's landmarks do not fit a hand; its fingers are relaxed.")
            continue
        pose[wrist], pose[fingers] = found.wrist, found.fingers
    context.progress(STAGE, 4, 4, "done")
    return pose, tuple(warnings)


def _axis_angle(rotation: np.ndarray) -> np.ndarray:
    """[3] axis-angle of a rotation matrix."""
    return Rotation.from_matrix(rotation).as_rotvec()
