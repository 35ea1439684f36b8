"""The controls of an avatar's rig, tried inside Blender: `python inside_rig.py FOLDER` prints one JSON line.

It leaves `rig.blend`, in which switches and curls are keyed, for check_rig.py. The assertions are in test_rig.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy
import numpy as np
from mathutils import Quaternion, Vector

import blender_addon
from blender_addon.motion.keys import assign_action, write_action
from blender_addon.motion.poses import Motion, photo_motion, rest_motion
from blender_addon.motion.walk import walk_motion
from blender_addon.rig.assemble import insert_avatar
from blender_addon.rig.curls import CURL_FINGERS, curl_property
from blender_addon.rig.limbs import LIMBS, Limb
from blender_addon.shared.avatar import Avatar
from blender_addon.shared.skeleton import BONE_NAMES, FACIAL_ACTIONS
from tests.blender.synthetic import make_avatar


class Rig:
    """The armature under test."""

    def __init__(self) -> None:
        cloud, self.avatar = make_avatar(300)
        self.ob = insert_avatar("tester", cloud, self.avatar, "REST").armature
        self.clear()

    def update(self) -> None:
        self.ob.update_tag()
        bpy.context.view_layer.update()

    def bones(self) -> Any:
        return self.ob.evaluated_get(bpy.context.evaluated_depsgraph_get()).pose.bones

    def matrices(self) -> np.ndarray:
        """[55, 4, 4] the deform bones as they are seen."""
        bones = self.bones()
        return np.array([np.array(bones[name].matrix) for name in BONE_NAMES])

    def switch(self, value: float) -> None:
        for limb in LIMBS:
            self.ob[limb.switch] = value
        self.update()

    def clear(self) -> None:
        self.ob.animation_data.action = None
        for bone in self.ob.pose.bones:
            bone.location = (0, 0, 0)
            bone.rotation_quaternion = (1, 0, 0, 0)
            if bone.rotation_mode == "YXZ":
                bone.rotation_euler = (0, 0, 0)
        for side in "LR":
            for finger in CURL_FINGERS:
                self.ob.pose.bones[f"hand.{side}"][curl_property(finger)] = 0.0
        self.ob["look_at"] = 0.0
        self.switch(0.0)


def place(rig: Rig, bone: str, point: Vector) -> None:
    """Put the head of a control without parent somewhere in the armature's space."""
    rig.ob.pose.bones[bone].location = rig.ob.data.bones[bone].matrix_local.inverted() @ point


def reach(rig: Rig) -> dict[str, float]:
    """Largest distance of hands and feet from random targets within reach, and elbows' and knees' side of the pole."""
    rng = np.random.default_rng(1)
    rig.clear()
    rest = rig.matrices()
    rig.switch(1.0)
    jump_m, jump_deg = difference(rest, rig.matrices())
    missed, sides = [], []
    for limb in LIMBS:
        bones = rig.ob.data.bones
        length = bones[limb.upper].length + bones[limb.lower].length
        start = bones[limb.upper].head_local
        line = (bones[limb.end].head_local - start).normalized()
        for _ in range(12):
            way = (line * 1.2 + Vector(rng.normal(size=3)).normalized()).normalized()
            goal = start + way * length * rng.uniform(0.4, 0.95)
            place(rig, limb.target, goal)
            rig.update()
            seen = rig.bones()
            missed.append((seen[limb.end].head - goal).length)
            chord = (goal - start).normalized()
            elbow, pole = (seen[name].head - start for name in (limb.lower, limb.pole))
            elbow, pole = (v - chord * v.dot(chord) for v in (elbow, pole))
            sides.append(elbow.normalized().dot(pole.normalized()))
    return {"missed_m": max(missed), "towards_pole": min(sides), "jump_m": jump_m, "jump_deg": jump_deg}


def bent_motion(avatar: Avatar) -> Motion:
    """Random poses with twist in every joint: no hinge could make them."""
    pose = np.random.default_rng(3).normal(0, 0.35, (4, 55, 3))
    return Motion("Bent", pose, np.zeros((4, 3)), {})


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Metres and degrees."""
    trace = np.einsum("nij,nij->n", a[:, :3, :3], b[:, :3, :3])
    angle = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)).max())
    return float(np.linalg.norm(a[:, :3, 3] - b[:, :3, 3], axis=1).max()), float(angle)


def snap(rig: Rig) -> dict[str, Any]:
    """There and back over poses of motions by the operators."""
    answer: dict[str, Any] = {}
    for motion in (photo_motion(rig.avatar), walk_motion(rig.avatar), rest_motion(rig.avatar), bent_motion(rig.avatar)):
        rig.clear()
        assign_action(rig.ob, write_action(rig.ob, motion))
        errors = []
        for frame in sorted({1, len(motion.pose) // 3 + 1, len(motion.pose)}):
            bpy.context.scene.frame_set(frame)
            fk = rig.matrices()
            bpy.ops.effigy.snap_ik(limb="ALL")
            assert all(rig.ob[limb.switch] == 1.0 for limb in LIMBS)
            ik = rig.matrices()
            for limb in LIMBS:
                for name in (limb.upper, limb.lower, limb.end):
                    rig.ob.pose.bones[name].rotation_quaternion = (1, 0, 0, 0)
            rig.update()
            unseen = difference(ik, rig.matrices())[0]
            bpy.ops.effigy.snap_fk(limb="ALL")
            assert all(rig.ob[limb.switch] == 0.0 for limb in LIMBS)
            back = rig.matrices()
            errors.append([*difference(fk, ik), *difference(ik, back), unseen])
        answer[motion.name] = np.max(errors, axis=0).tolist()
    return answer


def snap_frames(rig: Rig) -> dict[str, Any]:
    """A walk carried over to IK keys plays as before, and one frame of it goes back to FK."""
    rig.clear()
    scene = bpy.context.scene
    assign_action(rig.ob, write_action(rig.ob, walk_motion(rig.avatar)))
    scene.frame_start, scene.frame_end = 1, 8

    def record() -> np.ndarray:
        found = []
        for frame in range(1, 9):
            scene.frame_set(frame)
            found.append(rig.matrices())
        return np.concatenate(found)

    before = record()
    bpy.ops.effigy.snap_ik(limb="leg.L", over_frames=True)
    after = record()
    switched = float(rig.ob["ik_leg.L"])
    # The switch has keys now, so snapping one frame back to FK keys it, or the next redraw would undo it.
    scene.frame_set(5)
    bpy.ops.effigy.snap_fk(limb="leg.L")
    switches = []
    for frame in (4, 5):
        scene.frame_set(frame)
        switches.append(float(rig.ob["ik_leg.L"]))
    again = difference(before[4 * len(BONE_NAMES) : 5 * len(BONE_NAMES)], rig.matrices())[0]
    moved = float(np.ptp([rig.ob.pose.bones["foot_ik.L"].location.length, 0.0]))
    rig.ob.animation_data.action = None
    rig.clear()
    return {
        "error_m": difference(before, after)[0], "switch": switched, "moved_m": moved, "switches": switches,
        "again_m": again,
    }  # fmt: skip


def curl(rig: Rig) -> dict[str, Any]:
    """Fingertips' way towards the palm, and the angle that curls add to keyed fingers."""
    rig.clear()
    tips = {}
    for value in (0.0, 0.5, 1.0, -0.2):
        for side in "LR":
            for finger in CURL_FINGERS:
                rig.ob.pose.bones[f"hand.{side}"][curl_property(finger)] = value
        rig.update()
        bones = rig.bones()
        tips[value] = {
            f"{finger}.{side}": list(bones[f"{finger}_03.{side}"].tail) for finger in CURL_FINGERS for side in "LR"
        }
    rig.clear()
    keyed = Quaternion((0.0, 0.3, 1.0), 0.4)
    bone = rig.ob.pose.bones["index_02.L"]
    bone.rotation_quaternion = keyed
    rig.ob.pose.bones["hand.L"]["curl_index"] = 0.5
    rig.update()
    seen = rig.bones()
    local = seen["index_01.L"].matrix.inverted() @ seen["index_02.L"].matrix
    rest = rig.ob.data.bones["index_01.L"].matrix_local.inverted() @ rig.ob.data.bones["index_02.L"].matrix_local
    added = keyed.inverted() @ (rest.inverted() @ local).to_quaternion()
    return {"tips": tips, "added_deg": float(np.degrees(added.angle))}


def mirrored_name(name: str) -> str:
    return name[:-1] + {"L": "R", "R": "L"}[name[-1]] if name[-2:] in (".L", ".R") else name


def paste_flipped(rig: Rig) -> None:
    bpy.context.view_layer.objects.active = rig.ob
    for name in ("Body", "Fingers", "Face", "IK"):
        rig.ob.data.collections_all[name].is_visible = True
    bpy.ops.object.mode_set(mode="POSE")
    bpy.ops.pose.select_all(action="SELECT")
    bpy.ops.pose.copy()
    bpy.ops.pose.paste(flipped=True)
    bpy.ops.object.mode_set(mode="OBJECT")
    rig.update()


def mirror(rig: Rig) -> dict[str, Any]:
    """Flipped paste of FK poses, curls and IK controls: joints come out mirrored in x."""
    answer = {}
    rng = np.random.default_rng(5)
    for kind in ("fk", "ik"):
        rig.clear()
        for name in BONE_NAMES:
            turn = Quaternion(Vector(rng.normal(size=3)).normalized(), float(rng.uniform(0.1, 0.5)))
            rig.ob.pose.bones[name].rotation_quaternion = turn
        rig.ob.pose.bones["pelvis"].location = (0.1, 0.05, -0.2)
        hand = rig.ob.pose.bones["hand.L"]
        hand["curl_index"], hand["curl_thumb"] = 0.9, 0.6
        if kind == "ik":
            rig.switch(1.0)
            for limb in LIMBS:
                move_controls(rig, limb, rng)
        rig.update()
        before = rig.matrices()[:, :3, 3]
        paste_flipped(rig)
        after = rig.matrices()[:, :3, 3]
        rows = [BONE_NAMES.index(mirrored_name(name)) for name in BONE_NAMES]
        lopsided = np.linalg.norm(before - before[rows] * [-1, 1, 1], axis=1).max()
        error = np.linalg.norm(after - before[rows] * [-1, 1, 1], axis=1).max()
        answer[kind] = {"error_m": float(error), "lopsided_m": float(lopsided)}
        answer[kind]["curls"] = [rig.ob.pose.bones[f"hand.{side}"]["curl_index"] for side in "LR"]
    return answer


def mirror_all(rig: Rig) -> dict[str, Any]:
    """The operator also mirrors what is no bone: one arm in IK, one side of the face, a hand that is curled."""
    rig.clear()
    rng = np.random.default_rng(7)
    for name in BONE_NAMES:
        turn = Quaternion(Vector(rng.normal(size=3)).normalized(), float(rng.uniform(0.1, 0.4)))
        rig.ob.pose.bones[name].rotation_quaternion = turn
    rig.ob.pose.bones["pelvis"].location = (0.1, 0.05, -0.2)
    rig.ob.pose.bones["hand.R"]["curl_ring"] = 0.8
    rig.ob["ik_arm.L"], rig.ob["eyeBlinkLeft"], rig.ob["jawRight"] = 1.0, 0.7, 0.4
    move_controls(rig, next(limb for limb in LIMBS if limb.name == "arm.L"), rng)
    rig.update()
    before = rig.matrices()[:, :3, 3]
    bpy.context.view_layer.objects.active = rig.ob
    bpy.ops.effigy.mirror_pose()
    rig.update()
    rows = [BONE_NAMES.index(mirrored_name(name)) for name in BONE_NAMES]
    names = ("ik_arm.L", "ik_arm.R", "eyeBlinkLeft", "eyeBlinkRight", "jawLeft", "jawRight")
    answer = {
        "error_m": float(np.linalg.norm(rig.matrices()[:, :3, 3] - before[rows] * [-1, 1, 1], axis=1).max()),
        "lopsided_m": float(np.linalg.norm(before - before[rows] * [-1, 1, 1], axis=1).max()),
        "values": {name: rig.ob[name] for name in names},
        "curls": [rig.ob.pose.bones[f"hand.{side}"]["curl_ring"] for side in "LR"],
    }
    action = rig.ob.animation_data.action
    settings = bpy.context.scene.tool_settings
    settings.use_keyframe_insert_auto = True
    bpy.ops.effigy.mirror_pose(only_face=True)
    settings.use_keyframe_insert_auto = False
    answer["keyed"] = action is None and rig.ob.animation_data.action is not None
    rig.ob.animation_data.action = None
    answer["face_only"] = [rig.ob["eyeBlinkLeft"], rig.ob["ik_arm.R"]]
    for name in names:
        rig.ob[name] = 0.0
    return answer


def move_controls(rig: Rig, limb: Limb, rng: np.random.Generator) -> None:
    """Anywhere within reach, with a pole and rolls of its own."""
    bones = rig.ob.data.bones
    start = bones[limb.upper].head_local
    place(rig, limb.target, start.lerp(bones[limb.end].head_local, 0.7) + Vector(rng.uniform(-0.08, 0.08, 3)))
    rig.ob.pose.bones[limb.target].rotation_quaternion = Quaternion(Vector(rng.normal(size=3)).normalized(), 0.4)
    rig.ob.pose.bones[limb.pole].location = rng.uniform(-0.1, 0.1, 3)
    for name in limb.rolls:
        rig.ob.pose.bones[name].rotation_euler = (0, float(rng.uniform(-0.4, 0.4)), 0)


def look(rig: Rig) -> dict[str, float]:
    """Angle in degrees between the eyes' directions and the way to the target, off and on."""
    rig.clear()
    rig.ob.pose.bones["look_at"].location = (0.15, 0.0, 0.1)
    answer = {}
    for value in (0.0, 1.0):
        rig.ob["look_at"] = value
        rig.update()
        bones = rig.bones()
        goal = bones["look_at"].head
        eyes = (bones["eye.L"], bones["eye.R"])
        answer[str(value)] = max(np.degrees(eye.y_axis.angle(goal - eye.head)) for eye in eyes)
    return answer


def face(rig: Rig) -> dict[str, float]:
    """Reset of one region and of all."""
    for name in FACIAL_ACTIONS:
        rig.ob[name] = 0.5
    bpy.ops.effigy.reset_face(region="Jaw")
    answer = {"after_jaw": sum(rig.ob[name] for name in FACIAL_ACTIONS)}
    bpy.ops.effigy.reset_face(region="ALL")
    return answer | {"after_all": sum(rig.ob[name] for name in FACIAL_ACTIONS)}


def keyed_file(rig: Rig, path: Path) -> dict[str, Any]:
    """Keys: frame 1 FK, frame 10 IK with the hand's target lowered; index curled between; and the file."""
    rig.clear()
    ob, scene = rig.ob, bpy.context.scene
    start = ob.data.bones["upper_arm.L"].head_local
    goal = start + Vector((0.2, -0.25, -0.2))
    place(rig, "hand_ik.L", goal)
    ob.pose.bones["hand_ik.L"].keyframe_insert("location", frame=10)
    for frame, value in ((1, 0.0), (10, 1.0)):
        ob["ik_arm.L"] = value
        ob.keyframe_insert('["ik_arm.L"]', frame=frame)
        ob.pose.bones["hand.L"]["curl_index"] = value
        ob.pose.bones["hand.L"].keyframe_insert('["curl_index"]', frame=frame)
    answer: dict[str, Any] = {"goal": list(goal)}
    for frame in (1, 10):
        scene.frame_set(frame)
        answer[str(frame)] = {name: list(rig.bones()[name].head) for name in ("hand.L", "index_03.L")}
    bpy.ops.wm.save_as_mainfile(filepath=str(path))
    return answer


def main() -> int:
    folder = Path(sys.argv[1])
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    bpy.data.batch_remove(list(bpy.data.objects))
    blender_addon.register()
    try:
        rig = Rig()
        answer = {
            "reach": reach(rig), "snap": snap(rig), "frames": snap_frames(rig), "curl": curl(rig),
            "mirror": mirror(rig), "mirror_all": mirror_all(rig), "look": look(rig), "face": face(rig),
            "file": keyed_file(rig, folder / "rig.blend"),
        }  # fmt: skip
    finally:
        blender_addon.unregister()
    print("ANSWER " + json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
