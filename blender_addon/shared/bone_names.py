"""What other rigs call SMPL-X's joints: for reading their motion and for exporting to them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from .skeleton import JOINT_NAMES

Convention = Literal["smplx", "mixamo", "rigify", "vrm", "unreal"]

_BODY: Mapping[str, tuple[str, str, str, str]] = {
    # SMPL-X: (Mixamo, Rigify metarig, VRM 1.0 humanoid, Unreal mannequin); <Side>, <side>, <S> and <s> are the side.
    "pelvis": ("Hips", "spine", "hips", "pelvis"),
    "spine1": ("Spine", "spine.001", "spine", "spine_01"),
    "spine2": ("Spine1", "spine.002", "chest", "spine_02"),
    "spine3": ("Spine2", "spine.003", "upperChest", "spine_03"),
    "neck": ("Neck", "spine.004", "neck", "neck_01"),
    "head": ("Head", "spine.006", "head", "head"),
    "jaw": ("", "jaw", "jaw", ""),
    "hip": ("<Side>UpLeg", "thigh.<S>", "<side>UpperLeg", "thigh_<s>"),
    "knee": ("<Side>Leg", "shin.<S>", "<side>LowerLeg", "calf_<s>"),
    "ankle": ("<Side>Foot", "foot.<S>", "<side>Foot", "foot_<s>"),
    "foot": ("<Side>ToeBase", "toe.<S>", "<side>Toes", "ball_<s>"),
    "collar": ("<Side>Shoulder", "shoulder.<S>", "<side>Shoulder", "clavicle_<s>"),
    "shoulder": ("<Side>Arm", "upper_arm.<S>", "<side>UpperArm", "upperarm_<s>"),
    "elbow": ("<Side>ForeArm", "forearm.<S>", "<side>LowerArm", "lowerarm_<s>"),
    "wrist": ("<Side>Hand", "hand.<S>", "<side>Hand", "hand_<s>"),
    "eye_smplhf": ("<Side>Eye", "eye.<S>", "<side>Eye", ""),
}

_FINGERS: Mapping[str, tuple[str, str, str, str]] = {
    "index": ("Index", "f_index", "Index", "index"),
    "middle": ("Middle", "f_middle", "Middle", "middle"),
    "ring": ("Ring", "f_ring", "Ring", "ring"),
    "pinky": ("Pinky", "f_pinky", "Little", "pinky"),
    "thumb": ("Thumb", "thumb", "Thumb", "thumb"),
}

_VRM_PHALANX = {"thumb": ("Metacarpal", "Proximal", "Distal")}

_ALIASES: Mapping[str, tuple[str, ...]] = {
    # As `simplified` leaves them, without side; for the rigs of motion files that follow none of the conventions.
    "pelvis": ("hips", "hip", "pelvis", "root"),
    "neck": ("neck", "lowerneck", "neck01", "neck1"),
    "head": ("head",),
    "hip": ("upleg", "thigh", "upperleg", "hip"),
    "knee": ("leg", "knee", "shin", "calf", "lowerleg"),
    "ankle": ("foot", "ankle"),
    "foot": ("toebase", "toe", "toes", "ball"),
    "collar": ("collar", "clavicle", "shoulder"),
    "shoulder": ("arm", "upperarm", "uparm", "shoulder"),
    "elbow": ("forearm", "elbow", "lowerarm", "lowarm"),
    "wrist": ("hand", "wrist"),
}

_SPINE = re.compile(r"(lowerback|spine|chest|upperchest|torso|abdomen|waist)\d*")


def bone_name(joint: str, convention: Convention) -> str:
    """What a convention calls one of SMPL-X's joints; empty where it has none.

    Raises:
        ValueError: If the joint is not one of SMPL-X's.
    """
    if joint not in JOINT_NAMES:
        raise ValueError(f"{joint!r} is no joint of SMPL-X")
    if convention == "smplx":
        return joint
    column = ("mixamo", "rigify", "vrm", "unreal").index(convention)
    side, _, rest = joint.partition("_") if joint.startswith(("left_", "right_")) else ("", "", joint)
    if rest[:-1] in _FINGERS:
        return _finger(side, rest[:-1], int(rest[-1]), column)
    pattern = _BODY[rest][column]
    name = pattern.replace("<Side>", side.capitalize()).replace("<side>", side)
    name = name.replace("<S>", side[:1].upper()).replace("<s>", side[:1])
    return f"mixamorig:{name}" if convention == "mixamo" and name else name


def _finger(side: str, finger: str, phalanx: int, column: int) -> str:
    name = _FINGERS[finger][column]
    vrm = _VRM_PHALANX.get(finger, ("Proximal", "Intermediate", "Distal"))[phalanx - 1]
    return (
        f"mixamorig:{side.capitalize()}Hand{name}{phalanx}",
        f"{name}.0{phalanx}.{side[0].upper()}",
        f"{side}{name}{vrm}",
        f"{name}_0{phalanx}_{side[0]}",
    )[column]


def match_joints(names: Sequence[str]) -> dict[str, str]:
    """Which bone of another rig plays each of SMPL-X's joints.

    Known conventions are matched exactly, other rigs by common words. A chain of any number of spine bones is spread
    over the three of SMPL-X.

    Args:
        names: Bones of the other rig, parents first.

    Returns:
        SMPL-X joint -> bone name, for the joints that were found.
    """
    for convention in ("smplx", "mixamo", "rigify", "vrm", "unreal"):
        expected = {joint: bone_name(joint, convention) for joint in JOINT_NAMES}
        found = {joint: name for joint, name in expected.items() if name in names}
        if {"pelvis", "left_hip", "right_knee", "left_shoulder", "right_elbow"} <= found.keys():
            return found
    return _match_words(names)


def _match_words(names: Sequence[str]) -> dict[str, str]:
    sides: dict[tuple[str, str], str] = {}
    for name in names:
        sides.setdefault(simplified(name), name)
    found: dict[str, str] = {}
    for joint in JOINT_NAMES:
        side, _, rest = joint.partition("_") if joint.startswith(("left_", "right_")) else ("", "", joint)
        if rest[:-1] in _FINGERS:
            words: tuple[str, ...] = (f"hand{rest}", rest, f"finger{rest}")
        else:
            words = _ALIASES.get(rest, ())
        taken = set(found.values())
        match = next((sides[side, word] for word in words if sides.get((side, word), "") not in ("", *taken)), None)
        if match is not None:
            found[joint] = match
    # A lone finger bone is the tip of a hand without fingers.
    found = {j: n for j, n in found.items() if j[-1] not in "123" or j.startswith("spine") or f"{j[:-1]}2" in found}
    spine = [name for name in names if simplified(name)[0] == "" and _SPINE.fullmatch(simplified(name)[1])]
    if spine:
        picks = (0, (len(spine) - 1) // 2, len(spine) - 1)
        chosen = dict(zip(("spine1", "spine2", "spine3"), (spine[k] for k in picks), strict=True))
        found |= {
            joint: name for k, (joint, name) in enumerate(chosen.items()) if name not in list(chosen.values())[:k]
        }
    return found


def simplified(name: str) -> tuple[str, str]:
    """Side ("left", "right" or "") and the rest of a bone's name, lower case, letters and digits only."""
    text = name.rsplit(":", 1)[-1]
    side = ""
    for word, tests in (
        ("left", (r"^left", r"left$", r"^l[_.\- ]", r"[_.\- ]l$", r"^l(?=[A-Z])")),
        ("right", (r"^right", r"right$", r"^r[_.\- ]", r"[_.\- ]r$", r"^r(?=[A-Z])")),
    ):
        for test in tests:
            shorter = re.sub(test, "", text, count=1, flags=0 if "A-Z" in test else re.IGNORECASE)
            if shorter != text and not side:
                side, text = word, shorter
    return side, re.sub(r"[^a-z0-9]", "", text.lower())


__all__ = ["Convention", "bone_name", "match_joints", "simplified"]
