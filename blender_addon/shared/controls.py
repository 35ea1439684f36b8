"""Learned controls: a named linear basis per Gaussian, and what says how much of it is there.

A control adds `weight * delta` to a channel of the rest pose, before the binding:

    position       bind_off + sum, metres in the frame of the Gaussian's triangle
    log_scale      scale * exp(sum), per axis
    rotation       rotation * exp(sum), a rotation vector in the Gaussian's own axes, radians
    radiance       sh_dc + sum; colour = 0.28209479 * sh_dc + 0.5
    opacity_logit  sigmoid(logit(opacity) + sum)
    proxy          vertex of the proxy + sum, metres in the body frame, before the skinning

The weight is how far the artist moved a slider from its default, or a linear function of the joints' rotations: with c0
and c1 the first two columns of a joint's local rotation matrix (relative to its parent and to the rest pose, SMPL-X's
axes), weight = sum over joints of a . (c0 - e0) + b . (c1 - e1). So the rest pose with untouched sliders is the file.
backend/splats/controls.py evaluates this with numpy, blender_addon/rig with Geometry Nodes.

Deltas are whole multiples of a power of two, and only those of a control's region are kept: both make files small.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from .arrays import Array
from .skeleton import JOINT_NAMES

Channel = Literal["position", "log_scale", "rotation", "radiance", "opacity_logit", "proxy"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)

WIDTHS: Mapping[Channel, int] = {name: 1 if name == "opacity_logit" else 3 for name in CHANNELS}
"""Numbers per Gaussian, or per vertex."""

STEPS: Mapping[Channel, int] = {
    "position": -13,
    "log_scale": -9,
    "rotation": -10,
    "radiance": -8,
    "opacity_logit": -6,
    "proxy": -14,
}
"""Exponent of the usual step, a power of two: 0.12 mm, 0.2 %, 0.06 degrees, 0.001 of the colour's range, 0.4 % of
the opacity, 0.06 mm."""

VERSION = 1
MAX_CONTROLS = 512
_PREFIX = "control_"
_MAX_STEPS = 32767
_EXPONENTS = (-40, 20)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9 _.+-]{0,47}")
_TABLE = ("names", "groups", "descriptions", "ranges", "is_pose", "pose_weights")
_PARTS = ("controls", "starts", "indices", "steps", "exponents")


class ControlError(ValueError):
    """Controls that do not fit together; the message is one line."""


@dataclass(frozen=True)
class Control:
    """One control while it is being made.

    Attributes:
        name: As the slider is called: letters, digits, spaces and _ . + -, at most 48.
        deltas: Channel -> [N] or [N, 3] of all Gaussians, or [V, 3] of all vertices for `proxy`.
        low, high: Hard range of the slider.
        default: Of the slider.
        group: Heading that it stands under.
        description: Its tooltip, one line.
        pose: [55, 6] a and b of each joint, for a control that follows the pose instead of a slider.
    """

    name: str
    deltas: Mapping[Channel, Array]
    low: float = 0.0
    high: float = 1.0
    default: float = 0.0
    group: str = ""
    description: str = ""
    pose: Array | None = None


@dataclass(frozen=True)
class Basis:
    """One channel of those controls that have it.

    Attributes:
        controls: [K] int32, rows of the table of controls, rising.
        starts: [K + 1] int64: control k has the rows starts[k] .. starts[k + 1] of what follows.
        indices: [M] int32 Gaussian (vertex for `proxy`), rising within a control.
        steps: [M, width] int16 deltas in steps.
        exponents: [K] int8, a step is 2 ** exponent.
    """

    controls: Array
    starts: Array
    indices: Array
    steps: Array
    exponents: Array

    def delta(self, row: int, count: int) -> Array:
        """All deltas of the `row`-th control that has this channel, [count, width] float32."""
        dense = np.zeros((count, self.steps.shape[1]), np.float32)
        rows = slice(int(self.starts[row]), int(self.starts[row + 1]))
        dense[self.indices[rows]] = np.ldexp(self.steps[rows].astype(np.float32), int(self.exponents[row]))
        return dense

    def weighted(self, weights: Array, count: int) -> Array:
        """Sum over controls of weight * delta, [count, width] float64; weights [C] of the whole table."""
        total = np.zeros((count, self.steps.shape[1]))
        for row, control in enumerate(self.controls):
            weight = float(weights[control])
            if weight:
                rows = slice(int(self.starts[row]), int(self.starts[row + 1]))
                total[self.indices[rows]] += weight * np.ldexp(
                    self.steps[rows].astype(np.float64), int(self.exponents[row])
                )
        return total


@dataclass(frozen=True)
class Controls:
    """The controls of an avatar.

    Attributes:
        names: [C] text, each once.
        groups: [C] text, headings.
        descriptions: [C] text.
        ranges: [C, 3] low, high, default of sliders; zeros for the others.
        is_pose: [C] bool: follows the pose; else a slider.
        pose_weights: [C, 55, 6] a and b per joint; zeros for sliders and for the root, whose turn is no pose.
        bases: Channel -> deltas.
    """

    names: Array
    groups: Array
    descriptions: Array
    ranges: Array
    is_pose: Array
    pose_weights: Array
    bases: Mapping[Channel, Basis]

    def __post_init__(self) -> None:
        """Check names, shapes and values.

        Raises:
            ControlError: Naming the array and what is wrong with it.
        """
        count = len(self.names)
        shapes = {"names": (), "groups": (), "descriptions": (), "ranges": (3,), "is_pose": ()}
        for name, shape in {**shapes, "pose_weights": (len(JOINT_NAMES), 6)}.items():
            _expect(name, getattr(self, name), (count, *shape))
        if count > MAX_CONTROLS:
            raise ControlError(f"{count} controls; at most {MAX_CONTROLS} are read")
        for name in map(str, self.names):
            if not _NAME.fullmatch(name):
                raise ControlError(f"{name!r} is no name of a control: letters, digits, spaces and _ . + -, at most 48")
        if len(set(map(str, self.names))) < count:
            raise ControlError("two controls have the same name")
        for name, kinds in {
            "groups": "U",
            "descriptions": "U",
            "is_pose": "b",
            "ranges": "f",
            "pose_weights": "f",
        }.items():
            if getattr(self, name).dtype.kind not in kinds:
                raise ControlError(f"{_PREFIX}{name} has the type {getattr(self, name).dtype}")
        if not (np.isfinite(self.ranges).all() and np.isfinite(self.pose_weights).all()):
            raise ControlError("a range or a weight of a control is not finite")
        low, high, default = self.ranges[~self.is_pose].T
        if (low >= high).any() or (default < low).any() or (default > high).any():
            raise ControlError("the range of a slider is empty, or its default lies outside")
        if self.pose_weights[:, 0].any() or self.pose_weights[~self.is_pose].any():
            raise ControlError("a slider, or the root's turn, has weights of a pose")
        for channel, basis in self.bases.items():
            _check_basis(channel, basis, count)

    def __len__(self) -> int:
        """Number of controls."""
        return len(self.names)

    @property
    def sliders(self) -> list[int]:
        """Rows that the artist moves."""
        return np.flatnonzero(~self.is_pose).tolist()

    @property
    def followers(self) -> list[int]:
        """Rows that follow the pose."""
        return np.flatnonzero(self.is_pose).tolist()

    def check(self, gaussians: int, vertices: int, taken: Sequence[str]) -> None:
        """Check against the avatar they belong to.

        Raises:
            ControlError: If an index is outside, or a name is one of `taken`.
        """
        for channel, basis in self.bases.items():
            limit = vertices if channel == "proxy" else gaussians
            if len(basis.indices) and int(basis.indices.max()) >= limit:
                raise ControlError(f"{_PREFIX}{channel}_indices points outside its table of {limit}")
        both = sorted(n for n in map(str, self.names) if n in taken or n.startswith("effigy"))
        if both:
            raise ControlError(f"the control {both[0]} is called like another part of the rig")

    def weights(self, coefficients: Array, sliders: Mapping[str, float]) -> Array:
        """Weights of all controls [C], float64.

        Args:
            coefficients: [C] of the pose, from `pose_coefficients`.
            sliders: Values by name; the others have their defaults.

        Raises:
            KeyError: If one of `sliders` is none.
        """
        weights = np.where(self.is_pose, coefficients, 0.0)
        rows = {str(self.names[row]): row for row in self.sliders}
        for name, value in sliders.items():
            weights[rows[name]] = value - float(self.ranges[rows[name], 2])
        return weights

    def pose_coefficients(self, rotations: Array) -> Array:
        """Coefficients [C] of the joints' local rotation matrices [55, 3, 3]; 0 for sliders."""
        columns = np.asarray(rotations, np.float64)[:, :, :2] - np.eye(3)[:, :2]
        six = columns.transpose(0, 2, 1).reshape(len(columns), 6)
        return np.einsum("cjk,jk->c", self.pose_weights.astype(np.float64), six)

    def to_arrays(self) -> dict[str, Array]:
        """What is stored in avatar.npz."""
        arrays: dict[str, Array] = {f"{_PREFIX}version": np.array(VERSION, np.int32)}
        arrays |= {f"{_PREFIX}{name}": getattr(self, name) for name in _TABLE}
        for channel, basis in self.bases.items():
            arrays |= {f"{_PREFIX}{channel}_{part}": getattr(basis, part) for part in _PARTS}
        return arrays


def controls_from_arrays(arrays: Mapping[str, Array]) -> Controls | None:
    """The controls of an avatar.npz, or None where it has none.

    Raises:
        ControlError: If an array is missing or wrong, or the file is from a newer version.
    """
    names = {name for name in arrays if name.startswith(_PREFIX)}
    if not names:
        return None
    version = arrays.get(f"{_PREFIX}version", np.array(0))
    if version.shape != () or int(version) != VERSION:
        raise ControlError(f"its controls have version {version}, this one reads {VERSION}; update the add-on")
    bases: dict[Channel, Basis] = {}
    wanted = {f"{_PREFIX}version", *(f"{_PREFIX}{name}" for name in _TABLE)}
    for channel in CHANNELS:
        parts = {part: f"{_PREFIX}{channel}_{part}" for part in _PARTS}
        if names.isdisjoint(parts.values()):
            continue
        wanted |= set(parts.values())
        _require(names, parts.values())
        bases[channel] = Basis(**{part: arrays[name] for part, name in parts.items()})
    _require(names, sorted(wanted))
    if names - wanted:
        raise ControlError(f"{min(names - wanted)} is nothing that this version knows")
    return Controls(**{name: arrays[f"{_PREFIX}{name}"] for name in _TABLE}, bases=bases)


def pack_controls(controls: Sequence[Control]) -> Controls:
    """Round the deltas to steps and keep what is not zero.

    A slider with a wide range gets finer steps than the channel's usual ones, deltas too large for them coarser ones.

    Raises:
        ControlError: If the controls do not fit together.
    """
    texts = {key: np.array([getattr(c, key) for c in controls], np.str_) for key in ("name", "group", "description")}
    pose = np.zeros((len(controls), len(JOINT_NAMES), 6), np.float32)
    for row, control in enumerate(controls):
        if control.pose is not None:
            _expect(f"pose of {control.name}", control.pose, pose.shape[1:])
            pose[row] = control.pose
    is_pose = np.array([c.pose is not None for c in controls], bool)
    ranges = np.array([(c.low, c.high, c.default) for c in controls], np.float32).reshape(-1, 3)
    ranges[is_pose] = 0.0
    bases: dict[Channel, Basis] = {}
    for channel in CHANNELS:
        if any(channel in c.deltas for c in controls):
            bases[channel] = _pack(channel, controls)
    return Controls(texts["name"], texts["group"], texts["description"], ranges, is_pose, pose, bases)


def _pack(channel: Channel, controls: Sequence[Control]) -> Basis:
    rows: list[int] = []
    starts, exponents = [0], list[int]()
    indices: list[Array] = []
    steps: list[Array] = []
    for row, control in enumerate(controls):
        if channel not in control.deltas:
            continue
        deltas = np.asarray(control.deltas[channel], np.float64)
        deltas = deltas.reshape(len(deltas), WIDTHS[channel])
        largest = float(np.abs(deltas).max(initial=0.0))
        # What counts is the error at the slider's far end.
        reach = 1.0 if control.pose is not None else max(control.high - control.default, control.default - control.low)
        if not (np.isfinite(largest) and np.isfinite(reach)):
            raise ControlError(f"{control.name}: its range or its deltas of {channel} are not finite")
        exponent = STEPS[channel] - max(0, math.ceil(math.log2(max(reach, 1.0))))
        while largest > _MAX_STEPS * 2.0**exponent:
            exponent += 1
        rounded = np.rint(np.ldexp(deltas, -exponent)).astype(np.int16)
        used = np.flatnonzero(rounded.any(axis=1)).astype(np.int32)
        rows.append(row)
        starts.append(starts[-1] + len(used))
        indices.append(used)
        steps.append(rounded[used])
        exponents.append(exponent)
    return Basis(
        np.array(rows, np.int32), np.array(starts, np.int64), np.concatenate(indices), np.concatenate(steps),
        np.array(exponents, np.int8),
    )  # fmt: skip


def _check_basis(channel: Channel, basis: Basis, count: int) -> None:
    if channel not in CHANNELS:
        raise ControlError(f"{channel} is no channel of a control")
    have, length = len(basis.controls), len(basis.indices)
    shapes = {"controls": (have,), "starts": (have + 1,), "indices": (length,), "exponents": (have,)}
    kinds = {"controls": "i", "starts": "i", "indices": "i", "steps": "i", "exponents": "i"}
    for part, shape in {**shapes, "steps": (length, WIDTHS[channel])}.items():
        array = cast(Array, getattr(basis, part))
        _expect(f"{channel}_{part}", array, shape)
        if array.dtype.kind not in kinds[part]:
            raise ControlError(f"{_PREFIX}{channel}_{part} has the type {array.dtype}")
    rising = (np.diff(basis.controls) > 0).all() and (np.diff(basis.starts) >= 0).all()
    if not rising or basis.starts[0] != 0 or basis.starts[-1] != length:
        raise ControlError(f"{_PREFIX}{channel}_starts does not divide its table")
    if have and not (0 <= int(basis.controls[0]) and int(basis.controls[-1]) < count):
        raise ControlError(f"{_PREFIX}{channel}_controls points outside its table of {count}")
    inner = np.ones(max(length - 1, 0), bool)
    borders = basis.starts[1:-1] - 1
    inner[borders[(borders >= 0) & (borders < length - 1)]] = False
    if (length and int(basis.indices.min()) < 0) or (np.diff(basis.indices)[inner] <= 0).any():
        raise ControlError(f"{_PREFIX}{channel}_indices does not rise within a control")
    if have and not (_EXPONENTS[0] <= int(basis.exponents.min()) and int(basis.exponents.max()) <= _EXPONENTS[1]):
        raise ControlError(f"{_PREFIX}{channel}_exponents lie outside {_EXPONENTS[0]} .. {_EXPONENTS[1]}")


def _expect(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if np.shape(array) != shape:
        raise ControlError(f"{_PREFIX}{name} has shape {np.shape(array)}, expected {shape}")


def _require(names: set[str], wanted: object) -> None:
    missing = sorted(set(cast("Sequence[str]", wanted)) - names)
    if missing:
        raise ControlError(f"{missing[0]} is missing; the file is damaged or from another version")
