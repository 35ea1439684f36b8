"""BVH: the one text format of motion that every tool writes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..shared.skeleton import axis_angle_to_matrices

MAX_BYTES = 512 * 1024**2
"""Larger files are refused before they are read; an hour of motion at 120 frames a second has about 400 MB."""

MAX_JOINTS = 1024

_MOTION_HEAD = re.compile(r"\s*Frames\s*:\s*(\S+)\s+Frame\s+Time\s*:\s*(\S+)")

_AXES = {"X": 0, "Y": 1, "Z": 2}


class MotionError(ValueError):
    """A file that holds no motion that can be played; the message is one line for the user."""


@dataclass(frozen=True)
class Bvh:
    """A skeleton and its motion, in the file's own units and axes.

    Attributes:
        names: [J] of the joints, parents first; end sites are not among them.
        parents: [J] int, -1 for the root.
        offsets: [J, 3] from the parent's joint in the rest pose.
        ends: [J, 3] offset of the end site, zero where the joint has none.
        rotations: [F, J, 3, 3] local.
        positions: [F, 3] of the root.
        frame_seconds: Time from one frame to the next.
    """

    names: tuple[str, ...]
    parents: np.ndarray
    offsets: np.ndarray
    ends: np.ndarray
    rotations: np.ndarray
    positions: np.ndarray
    frame_seconds: float

    def world(self) -> tuple[np.ndarray, np.ndarray]:
        """Global rotations [F, J, 3, 3] and joint positions [F, J, 3]."""
        rotations, positions = self.rotations.copy(), np.repeat(self.positions[:, None], len(self.names), axis=1)
        for joint, parent in enumerate(self.parents):
            if parent >= 0:
                rotations[:, joint] = rotations[:, parent] @ self.rotations[:, joint]
                positions[:, joint] = positions[:, parent] + rotations[:, parent] @ self.offsets[joint]
        return rotations, positions

    def rest(self) -> np.ndarray:
        """Joint positions [J, 3] of the rest pose, the root at the origin."""
        positions = np.zeros((len(self.names), 3))
        for joint, parent in enumerate(self.parents):
            if parent >= 0:
                positions[joint] = positions[parent] + self.offsets[joint]
        return positions


def read_bvh(path: str | os.PathLike[str]) -> Bvh:
    """Read a BVH file.

    Raises:
        MotionError: Naming the file and what is wrong with it.
        OSError: If it cannot be opened.
    """
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise MotionError(f"{path.name}: larger than {MAX_BYTES >> 20} MB; cut the motion into parts")
    head, found, tail = path.read_text("utf-8", errors="replace").partition("MOTION")
    words = iter(head.split())
    if not found or next(words, "") != "HIERARCHY":
        raise MotionError(f"{path.name}: not a BVH file")
    skeleton = _Skeleton(path.name)
    try:
        skeleton.read(words)
    except StopIteration:
        raise MotionError(f"{path.name}: the skeleton is cut short") from None
    frames, seconds, values = _numbers(tail, path.name)
    channels = sum(len(c) for c in skeleton.channels)
    if values.size != frames * channels:
        raise MotionError(f"{path.name}: has {values.size} numbers for {frames} frames of {channels} channels")
    return skeleton.pose(values.reshape(frames, channels), seconds)


class _Skeleton:
    """The HIERARCHY section."""

    def __init__(self, file_name: str) -> None:
        self.file_name = file_name
        self.names: list[str] = []
        self.parents: list[int] = []
        self.offsets: list[list[float]] = []
        self.ends: list[list[float]] = []
        self.channels: list[list[str]] = []

    def read(self, words: Iterator[str]) -> None:
        """Read all joints; `StopIteration` where the text ends too soon."""
        stack: list[int] = []
        in_end_site = False
        word = next(words)
        while word:
            if word in ("ROOT", "JOINT"):
                if (word == "ROOT") != (not self.names) or len(self.names) >= MAX_JOINTS:
                    raise MotionError(f"{self.file_name}: has more than one skeleton or too many joints")
                stack.append(self._add(next(words), stack[-1] if stack else -1))
                self._expect(next(words), "{")
            elif word == "End":
                next(words)
                self._expect(next(words), "{")
                in_end_site = True
            elif word == "OFFSET" and stack:
                (self.ends if in_end_site else self.offsets)[stack[-1]] = [self._number(next(words)) for _ in range(3)]
            elif word == "CHANNELS" and stack:
                self.channels[stack[-1]] = [self._channel(next(words)) for _ in range(int(self._number(next(words))))]
            elif word == "}" and in_end_site:
                in_end_site = False
            elif word == "}" and stack:
                stack.pop()
                if not stack:
                    return
            else:
                raise MotionError(f"{self.file_name}: the skeleton has a word that makes no sense: {word[:40]!r}")
            word = next(words)

    def _add(self, name: str, parent: int) -> int:
        self.names.append(name)
        self.parents.append(parent)
        self.offsets.append([0.0, 0.0, 0.0])
        self.ends.append([0.0, 0.0, 0.0])
        self.channels.append([])
        return len(self.names) - 1

    def _expect(self, word: str, wanted: str) -> None:
        if word != wanted:
            raise MotionError(f"{self.file_name}: the skeleton has {word[:40]!r} where {wanted!r} belongs")

    def _number(self, word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise MotionError(f"{self.file_name}: the skeleton has {word[:40]!r} where a number belongs")
        return value

    def _channel(self, word: str) -> str:
        kind = word[:1].upper() + word[1:].lower()
        if kind[:1] not in _AXES or kind[1:] not in ("position", "rotation"):
            raise MotionError(f"{self.file_name}: has an unknown channel {word[:40]!r}")
        return kind

    def pose(self, values: np.ndarray, seconds: float) -> Bvh:
        """The motion of channel values [F, C]."""
        frames, joints = len(values), len(self.names)
        rotations = np.broadcast_to(np.eye(3), (frames, joints, 3, 3)).copy()
        positions = np.zeros((frames, 3)) + np.array(self.offsets[0])
        column = 0
        for joint, channels in enumerate(self.channels):
            for channel in channels:
                axis, value = _AXES[channel[0]], values[:, column]
                column += 1
                if channel.endswith("rotation"):
                    vector = np.zeros((frames, 3))
                    vector[:, axis] = np.radians(value)
                    # The file lists the outermost turn first.
                    rotations[:, joint] = rotations[:, joint] @ axis_angle_to_matrices(vector)
                elif joint == 0:
                    positions[:, axis] = value
        return Bvh(
            tuple(self.names), np.array(self.parents), np.array(self.offsets), np.array(self.ends),
            rotations, positions, seconds,
        )  # fmt: skip


_NO_MOTION = "the motion has no frames, an impossible frame time or values that are no number"

_BLOCK_LINES = 4096
"""Lines whose numbers are read at a time: as words they take many times the file's memory."""


def _numbers(text: str, file_name: str) -> tuple[int, float, np.ndarray]:
    """Number of frames, seconds per frame and all values of the MOTION section."""
    damaged = f"{file_name}: the motion is damaged: frames, frame time or values are missing"
    found = _MOTION_HEAD.match(text)
    if found is None:
        raise MotionError(damaged)
    try:
        frames, seconds = int(found[1]), float(found[2])
        lines = text[found.end() :].splitlines()
        blocks = (lines[k : k + _BLOCK_LINES] for k in range(0, len(lines), _BLOCK_LINES))
        values = [np.array(" ".join(block).split(), np.float64) for block in blocks]
    except ValueError:
        raise MotionError(damaged) from None
    flat = np.concatenate(values) if values else np.zeros(0)
    if frames < 1 or not 1e-4 < seconds < 10 or not np.isfinite(flat).all():
        raise MotionError(f"{file_name}: {_NO_MOTION}")
    return frames, seconds, flat


def write_bvh(
    path: str | os.PathLike[str],
    names: Sequence[str],
    parents: np.ndarray,
    joints: np.ndarray,
    rotations: np.ndarray,
    positions: np.ndarray,
    frame_seconds: float,
) -> None:
    """Write a motion; the file appears under its name only when it is whole.

    Args:
        path: File to write.
        names: [J] of the joints, parents first.
        parents: [J], -1 for the root.
        joints: [J, 3] of the rest pose.
        rotations: [F, J, 3, 3] local.
        positions: [F, 3] of the root.
        frame_seconds: Time from one frame to the next.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(path)
    children: dict[int, list[int]] = {}
    for joint, parent in enumerate(parents):
        children.setdefault(int(parent), []).append(joint)
    order: list[int] = []
    lines = ["HIERARCHY"]

    def add(joint: int, depth: int) -> None:
        order.append(joint)
        pad, inner = "\t" * depth, "\t" * (depth + 1)
        offset = joints[joint] - (joints[parents[joint]] if parents[joint] >= 0 else joints[joint])
        lines.append(f"{pad}{'JOINT' if depth else 'ROOT'} {names[joint]}")
        lines.extend([f"{pad}{{", f"{inner}OFFSET {_text(offset)}"])
        root = "" if depth else "Xposition Yposition Zposition "
        lines.append(f"{inner}CHANNELS {3 if depth else 6} {root}Zrotation Xrotation Yrotation")
        for child in children.get(joint, []):
            add(child, depth + 1)
        if joint not in children:
            lines.extend([f"{inner}End Site", f"{inner}{{", f"{inner}\tOFFSET {_text(0.25 * offset)}", f"{inner}}}"])
        lines.append(f"{pad}}}")

    add(0, 0)
    angles = _zxy_degrees(rotations[:, order]).reshape(len(rotations), -1)
    rows = np.concatenate([positions, angles], axis=1)
    lines += ["MOTION", f"Frames: {len(rows)}", f"Frame Time: {frame_seconds:.8f}"]
    lines += [" ".join(f"{value:.6f}" for value in row) for row in rows]
    part = path.with_name(path.name + ".part")
    try:
        part.write_text("\n".join(lines) + "\n", "utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _text(vector: np.ndarray) -> str:
    return " ".join(f"{value:.6f}" for value in vector)


def _zxy_degrees(rotations: np.ndarray) -> np.ndarray:
    """Angles [..., 3] with R = Rz(a) Rx(b) Ry(c), degrees; at b = +-90 the last one is zero."""
    m = rotations
    x = np.arcsin(np.clip(m[..., 2, 1], -1, 1))
    level = np.abs(m[..., 2, 1]) < 1 - 1e-9
    z = np.where(level, np.arctan2(-m[..., 0, 1], m[..., 1, 1]), np.arctan2(m[..., 1, 0], m[..., 0, 0]))
    y = np.where(level, np.arctan2(-m[..., 2, 0], m[..., 2, 2]), 0.0)
    return np.degrees(np.stack([z, x, y], axis=-1))
