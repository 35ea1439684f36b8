"""Does a saved avatar deform without the add-on? Run by any Python with bpy: needs bpy and numpy, nothing of Effigy.

    python check_deform.py avatar.blend bundle_folder cloud.npz

Turns bones by 60 degrees, sets facial actions, and compares the evaluated cloud with linear blend skinning of the
bundle's proxy in numpy followed by the binding formula. Prints one JSON line with the largest errors.
"""

from __future__ import annotations

import json
import sys

import bpy
import numpy as np

TO_BLENDER = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
TURNS_DEG = {
    "left_shoulder": (40.0, 20.0, -40.0),
    "right_shoulder": (-60.0, 0.0, 0.0),
    "left_elbow": (0.0, -60.0, 0.0),
    "right_elbow": (0.0, 60.0, 0.0),
    "left_wrist": (60.0, 0.0, 0.0),
    "right_wrist": (-50.0, 20.0, 25.0),
    "left_hip": (-60.0, 0.0, 0.0),
    "right_knee": (60.0, 0.0, 0.0),
    "head": (0.0, 60.0, 0.0),
    "jaw": (20.0, 0.0, 0.0),
    "spine2": (30.0, 30.0, 42.0),
    "pelvis": (20.0, -50.0, 26.0),
    "left_index2": (0.0, 0.0, -60.0),
}
FACE = {"jawOpen": 0.7, "mouthSmileLeft": 0.5, "eyeBlinkRight": 1.0, "photo": 1.0}
PELVIS_M = (0.1, 0.05, -0.2)
COLLAPSED_M = 1.5e-4
"""A triangle of a closed lid may become a line. At head height single precision resolves 0.0001 mm: triangles lower
than this cannot hold their direction to 0.1 degrees."""


def main() -> int:
    blend, bundle, cloud_file = sys.argv[1:4]
    bpy.context.preferences.filepaths.use_scripts_auto_execute = False
    bpy.ops.wm.open_mainfile(filepath=blend)
    armature = next(ob for ob in bpy.data.objects if ob.type == "ARMATURE")
    splats = next(ob for ob in bpy.data.objects if ob.type == "POINTCLOUD")
    arrays = dict(np.load(f"{bundle}/avatar.npz", allow_pickle=False))
    cloud = dict(np.load(cloud_file, allow_pickle=False))
    armature.animation_data.action = None
    splats.modifiers["Display"].show_viewport = False

    report = {"version": bpy.app.version_string, "python_drivers": python_drivers()}
    report["addons"] = [name for name in bpy.context.preferences.addons.keys() if "effigy" in name]
    report["texts"] = len(bpy.data.texts)
    for label, scale in (("rest", 0.0), ("posed", 1.0)):
        pose = np.zeros((len(arrays["parents"]), 3))
        for joint, turn in TURNS_DEG.items():
            pose[list(arrays["joint_names"]).index(joint)] = np.radians(turn) * scale
        face = {name: weight * scale for name, weight in FACE.items()}
        shift = np.array(PELVIS_M) * scale
        set_pose(armature, arrays, pose, face, shift)
        report[label] = compare(evaluated(splats), expected(arrays, cloud, pose, face, shift))
    report["moved_m"] = report["posed"].pop("moved_m")
    report["walk"] = walk(armature, splats)
    print("REPORT " + json.dumps(report))
    return 0


def python_drivers() -> list[str]:
    """Drivers that would need Python, or that Blender calls invalid."""
    owners = [*bpy.data.objects, *bpy.data.shape_keys, *bpy.data.armatures, *bpy.data.node_groups, *bpy.data.materials]
    curves = [c for o in owners if o.animation_data for c in o.animation_data.drivers]
    return [c.data_path for c in curves if c.driver.type == "SCRIPTED" or not c.driver.is_valid] + [""] * (not curves)


def set_pose(armature, arrays, pose, face, shift) -> None:
    bones = {bone.get("smplx_joint"): bone for bone in armature.data.bones}
    for joint, name in enumerate(arrays["joint_names"]):
        rest = np.array(bones[str(name)].matrix_local)[:3, :3]
        local = rest.T @ TO_BLENDER @ rotation(pose[joint]) @ TO_BLENDER.T @ rest
        bone = armature.pose.bones[bones[str(name)].name]
        bone.rotation_quaternion = quaternion(local)
        if joint == 0:
            bone.location = rest.T @ TO_BLENDER @ shift
    for name in arrays["shape_key_names"]:
        armature[str(name)] = face.get(str(name), 0.0)
    armature.update_tag()
    bpy.context.view_layer.update()


def evaluated(splats) -> dict[str, np.ndarray]:
    data = splats.evaluated_get(bpy.context.evaluated_depsgraph_get()).data
    out = {}
    for name, key, width in (("position", "vector", 3), ("scale", "vector", 3), ("rotation", "value", 4)):
        values = np.empty(len(data.points) * width, np.float32)
        data.attributes[name].data.foreach_get(key, values)
        out[name] = values.reshape(-1, width).astype(np.float64)
    return out


def expected(arrays, cloud, pose, face, shift) -> dict[str, np.ndarray]:
    weights = np.array([face.get(str(name), 0.0) for name in arrays["shape_key_names"]])
    vertices = arrays["vertices_m"] + np.einsum("k,kvc->vc", weights, arrays["shape_key_offsets_m"].astype(np.float64))
    posed = skin(arrays, vertices, pose) + shift
    corners = arrays["triangles"][arrays["bind_triangle"]]
    v0, v1, v2 = (posed[corners[:, k]] for k in range(3))
    x, z = v1 - v0, np.cross(v1 - v0, v2 - v0)
    length = np.sqrt(np.linalg.norm(z, axis=1))
    x, z = x / np.linalg.norm(x, axis=1, keepdims=True), z / np.linalg.norm(z, axis=1, keepdims=True)
    frame = np.stack([x, np.cross(z, x), z], axis=2)
    longest = np.linalg.norm(np.stack([v1 - v0, v2 - v1, v0 - v2]), axis=2).max(axis=0)
    bary = arrays["bind_bary"].astype(np.float64)
    foot = bary[:, :1] * v0 + bary[:, 1:2] * v1 + bary[:, 2:] * v2
    position = foot + np.einsum("nij,nj->ni", frame, arrays["bind_off"])
    turn = frame @ matrices(arrays["bind_qinv"]) @ matrices(cloud["rotations_wxyz"])
    stretch = np.clip(length / arrays["bind_length"], 0.5, 2.0)
    return {
        "position": position @ TO_BLENDER.T,
        "matrix": TO_BLENDER @ turn,
        "scale": cloud["scales_m"] * stretch[:, None],
        "height": length**2 / longest,
        "rest": cloud["positions_m"] @ TO_BLENDER.T,
    }


def skin(arrays, vertices, pose) -> np.ndarray:
    joints, parents = arrays["joints_m"].astype(np.float64), arrays["parents"]
    world, place = [rotation(pose[0])], [joints[0]]
    for j in range(1, len(joints)):
        p = parents[j]
        world.append(world[p] @ rotation(pose[j]))
        place.append(place[p] + world[p] @ (joints[j] - joints[p]))
    centres = list(joints)
    twists = zip(arrays["twist_parents"], arrays["twist_sources"], arrays["twist_factors"], strict=True)
    for parent, source, factor in twists:
        child = int(np.flatnonzero(parents == parent)[0])
        axis = (joints[child] - joints[parent]) / np.linalg.norm(joints[child] - joints[parent])
        w, *v = quaternion(rotation(pose[source]))
        angle = 2 * np.arctan2(np.dot(v, axis), w)
        world.append(world[parent] @ rotation(axis * angle * factor))
        place.append(place[parent])
        centres.append(joints[parent])
    world, place, centres = np.array(world), np.array(place), np.array(centres)
    out = np.zeros_like(vertices)
    for slot in range(arrays["skin_indices"].shape[1]):
        j, weight = arrays["skin_indices"][:, slot], arrays["skin_weights"][:, slot].astype(np.float64)
        moved = place[j] + np.einsum("vij,vj->vi", world[j], vertices - centres[j])
        out += weight[:, None] * moved
    return out / arrays["skin_weights"].astype(np.float64).sum(axis=1, keepdims=True)


def compare(actual, wanted) -> dict[str, float]:
    between = np.swapaxes(matrices(actual["rotation"]), 1, 2) @ wanted["matrix"]
    sine = np.stack([between[:, 2, 1] - between[:, 1, 2], between[:, 0, 2] - between[:, 2, 0]], axis=1)
    sine = np.concatenate([sine, (between[:, 1, 0] - between[:, 0, 1])[:, None]], axis=1)
    angle = np.arctan2(np.linalg.norm(sine, axis=1), np.trace(between, axis1=1, axis2=2) - 1)
    firm = wanted["height"] > COLLAPSED_M
    return {
        "collapsed": float((~firm).mean()),
        "position_m": float(np.linalg.norm(actual["position"] - wanted["position"], axis=1).max()),
        "rotation_deg": float(np.degrees(angle[firm]).max()),
        "scale_relative": float(np.abs(actual["scale"] / wanted["scale"] - 1).max()),
        "moved_m": float(np.linalg.norm(actual["position"] - wanted["rest"], axis=1).max()),
    }


def walk(armature, splats) -> dict[str, float]:
    """How far the cloud moves between frames when the Walk action plays."""
    armature.animation_data.action = bpy.data.actions["Walk"]
    if getattr(bpy.data.actions["Walk"], "slots", None) and armature.animation_data.action_slot is None:
        armature.animation_data.action_slot = bpy.data.actions["Walk"].slots[0]
    first, last = (int(x) for x in bpy.data.actions["Walk"].frame_range)
    clouds = {}
    for frame in (first, (first + last) // 2, last):
        bpy.context.scene.frame_set(frame)
        clouds[frame] = evaluated(splats)["position"]
    half, cycle = (float(np.abs(clouds[f] - clouds[first]).max()) for f in ((first + last) // 2, last))
    return {"frames": last - first, "half_cycle_m": half, "whole_cycle_m": cycle}


def rotation(axis_angle) -> np.ndarray:
    angle = np.linalg.norm(axis_angle)
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = np.asarray(axis_angle) / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def quaternion(m) -> np.ndarray:
    """w, x, y, z of a rotation matrix by less than 180 degrees."""
    w = np.sqrt(max(1 + np.trace(m), 0)) / 2
    return np.array([w, *(np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]]) / (4 * w))])


def matrices(q) -> np.ndarray:
    q = q.astype(np.float64)
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return np.stack(rows, axis=1).reshape(-1, 3, 3)


if __name__ == "__main__":
    sys.exit(main())
