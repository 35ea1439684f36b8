"""Everything that leaves Blender, by the operators: `python inside_export.py FOLDER`, for test_export.py.

Leaves files and npz in the folder and prints one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy
import numpy as np

import blender_addon
from blender_addon.export.splat_files import SplatExport, write_frames
from blender_addon.export.stand_in import bound_colours
from blender_addon.export.usd_avatar import has_usd
from blender_addon.rig.assemble import AvatarObjects, insert_avatar
from blender_addon.shared.skeleton import BONE_NAMES
from tests.blender.synthetic import make_avatar

FRAMES = (1, 6, 11)


def choose(*objects: bpy.types.Object) -> None:
    """Select objects; the first is active."""
    for ob in bpy.context.view_layer.objects:
        ob.select_set(ob in objects)
    bpy.context.view_layer.objects.active = objects[0]


def refused(operator: Any, **settings: Any) -> str:
    """What an operator says that must not work."""
    try:
        operator(**settings)
    except RuntimeError as error:
        return str(error)
    return ""


def new_avatar(name: str, degree_3: bool = False, count: int = 400) -> AvatarObjects:
    cloud, arrays = make_avatar(count)
    if degree_3:
        rest = np.random.default_rng(5).normal(0, 0.3, (count, 15, 3))
        cloud = replace(cloud, sh_rest=rest)
    return insert_avatar(name, cloud, arrays, "WALK")


def restless(rig: bpy.types.Object) -> None:
    """Everything at once that moves a rig: keys, IK, curls, gaze, a moved object."""
    rig["ik_hand.L" if "ik_hand.L" in rig else next(k for k in rig.keys() if k.startswith("ik"))] = 1.0
    rig.pose.bones["hand.R"]["curl_index"] = 0.7
    rig["look_at"] = 1.0
    rig.location, rig.rotation_euler = (0.4, -0.2, 0.1), (0.1, 0.2, 0.6)
    rig.update_tag()
    bpy.context.view_layer.update()


def matrices(rig: bpy.types.Object, frame: int) -> np.ndarray:
    """[55, 4, 4] in the world."""
    bpy.context.scene.frame_set(frame)
    seen = rig.evaluated_get(bpy.context.evaluated_depsgraph_get())
    return np.array([np.array(seen.matrix_world @ seen.pose.bones[name].matrix) for name in BONE_NAMES])


def vertices(proxy: bpy.types.Object, frame: int) -> np.ndarray:
    """The proxy as it is skinned, [V, 3] in glTF's axes."""
    bpy.context.scene.frame_set(frame)
    hidden, proxy.hide_viewport = proxy.hide_viewport, False
    bpy.context.view_layer.update()
    seen = proxy.evaluated_get(bpy.context.evaluated_depsgraph_get())
    points = np.array([seen.matrix_world @ vertex.co for vertex in seen.data.vertices])
    proxy.hide_viewport = hidden
    return points[:, [0, 2, 1]] * [1, 1, -1]


def data_counts() -> list[int]:
    blocks = ("objects", "meshes", "armatures", "actions", "materials", "scenes", "pointclouds", "node_groups")
    return [len(getattr(bpy.data, name)) for name in blocks]


def splats(folder: Path) -> dict[str, Any]:
    avatar = new_avatar("splats", degree_3=True)
    scene = bpy.context.scene
    avatar.armature.rotation_euler, avatar.armature.location = (0.3, 0.0, 1.2), (0.5, 0.0, 0.0)
    scene.frame_set(9)
    choose(avatar.armature)
    bpy.ops.effigy.export_splats(filepath=str(folder / "rest.ply"), state="REST")
    bpy.ops.effigy.export_splats(filepath=str(folder / "posed.ply"))
    avatar.cloud.hide_viewport = True
    hidden = refused(bpy.ops.effigy.export_splats, filepath=str(folder / "hidden.ply"))
    avatar.cloud.hide_viewport = False
    none = refused(bpy.ops.effigy.export_splats, filepath=str(folder / "none.sog"), format=".sog")
    sequence = str(folder / "walk.ply")
    scene.frame_set(4, subframe=0.25)
    bpy.ops.effigy.export_sequence(filepath=sequence, first=1, last=9, step=4)
    answer: dict[str, Any] = {"files": sorted(path.name for path in folder.glob("walk*"))}
    answer["frame"] = [scene.frame_current, scene.frame_subframe]
    for frame in (1, 5, 9):
        scene.frame_set(frame)
        bpy.ops.effigy.export_splats(filepath=str(folder / f"single_{frame}.ply"))
        answer[f"same_{frame}"] = (folder / f"single_{frame}.ply").read_bytes() == (
            folder / f"walk_{frame:04d}.ply"
        ).read_bytes()
    (folder / "walk_0005.ply").write_bytes(b"finished before")
    (folder / "walk_0009.ply").unlink()
    bpy.ops.effigy.export_sequence(filepath=sequence, first=1, last=9, step=4, skip_finished=True)
    answer["kept"] = (folder / "walk_0005.ply").read_bytes() == b"finished before"
    answer["resumed"] = (folder / "walk_0009.ply").is_file()
    bpy.ops.effigy.export_sequence(filepath=sequence, first=5, last=5)
    answer["again"] = (folder / "walk_0005.ply").stat().st_size > 1000
    scene.frame_set(3)
    work = write_frames(folder / "stopped.spz", [avatar.cloud], range(1, 100), SplatExport(".spz"))
    next(work)
    next(work)
    work.close()
    answer["stopped"] = sorted(path.name for path in folder.glob("stopped*"))
    answer["stopped_frame"] = scene.frame_current
    backwards = refused(bpy.ops.effigy.export_sequence, filepath=sequence, first=9, last=1)
    return answer | {"hidden": hidden, "no_backend": none, "backwards": backwards}


def gltf(folder: Path) -> dict[str, Any]:
    avatar = new_avatar("someone")
    rig, scene = avatar.armature, bpy.context.scene
    restless(rig)
    scene.frame_start, scene.frame_end = 1, 12
    choose(avatar.cloud)
    scene.frame_set(7)
    before = data_counts()
    rig["jawOpen"] = 0.4  # the walk has no keys for it, other actions have
    rig.update_tag()
    results = [bpy.ops.effigy.export_gltf(filepath=str(folder / "exact.glb"), all_influences=True)]
    results.append(bpy.ops.effigy.export_gltf(filepath=str(folder / "all.glb"), motion="ACTIONS", unlit=False))
    results.append(bpy.ops.effigy.export_gltf(filepath=str(folder / "still.glb"), motion="NONE"))
    answer: dict[str, Any] = {"left": data_counts() == before, "frame": scene.frame_current}
    answer["action"] = rig.animation_data.action.name
    answer["active"] = [ob.name for ob in (bpy.context.view_layer.objects.active, *bpy.context.selected_objects)]
    answer["parts"] = [path.name for path in folder.iterdir() if "part" in path.name]
    answer["refused"] = refused(bpy.ops.effigy.export_gltf, filepath=str(folder / "no" / "such" / "folder.glb"))
    places = {str(frame): vertices(avatar.proxy, frame) for frame in FRAMES}
    walk = [action for action in bpy.data.actions if action.name == "Walk"]
    rest = np.array([vertex.co for vertex in avatar.proxy.data.vertices])[:, [0, 2, 1]] * [1, 1, -1]
    np.savez(folder / "gltf.npz", rest=rest, colours=bound_colours(rig), **places)
    objects = set(bpy.data.objects)
    bpy.ops.import_scene.gltf(filepath=str(folder / "exact.glb"))
    made = set(bpy.data.objects) - objects
    read_back = next(ob for ob in made if ob.type == "MESH" and ob.data.shape_keys)
    answer["shapes"] = [block.name for block in read_back.data.shape_keys.key_blocks]
    answer["bones"] = sorted(next(ob for ob in made if ob.type == "ARMATURE").data.bones.keys())
    answer["fps"] = scene.render.fps / scene.render.fps_base
    finished = [result == {"FINISHED"} for result in results]
    return answer | {"finished": finished, "walk": [list(action.frame_range) for action in walk]}


def bvh(folder: Path) -> dict[str, Any]:
    first, second = new_avatar("from"), new_avatar("to")
    rig, scene = first.armature, bpy.context.scene
    restless(rig)
    rig.rotation_euler = (0.0, 0.0, 0.6)
    scene.frame_start, scene.frame_end = 1, 12
    choose(rig)
    wanted = {frame: matrices(rig, frame) for frame in FRAMES}
    results = [
        bpy.ops.effigy.export_bvh(filepath=str(folder / f"{names}.bvh"), names=names, unit=unit)
        for names, unit in (("smplx", "1"), ("mixamo", "100"), ("unreal", "1"))
    ]
    np.savez(folder / "bvh_wanted.npz", **{str(frame): value for frame, value in wanted.items()})
    choose(second.armature)
    for names in ("smplx", "mixamo"):
        file = str(folder / f"{names}.bvh")
        results.append(bpy.ops.effigy.import_motion(filepath=file, keep_contacts=False, face_front=False))
        seen = {str(frame): matrices(second.armature, frame) for frame in FRAMES}
        np.savez(folder / f"bvh_{names}.npz", **seen)
    # Blender's own importer as an independent reader; it turns Y up to Z up.
    bpy.ops.preferences.addon_enable(module="io_anim_bvh")
    bpy.ops.import_anim.bvh(filepath=str(folder / "smplx.bvh"), axis_forward="-Z", axis_up="Y", use_fps_scale=False)
    other = bpy.context.view_layer.objects.active
    joints = {bone["smplx_joint"]: bone.name for bone in rig.data.bones if "smplx_joint" in bone}
    heads = []
    for frame in FRAMES:
        scene.frame_set(frame)
        heads.append(
            [
                list(other.matrix_world @ other.pose.bones[joint].head)
                for joint in sorted(joints, key=list(joints).index)
            ]
        )
    np.savez(folder / "bvh_blender.npz", heads=heads, order=[BONE_NAMES.index(joints[j]) for j in joints])
    return {"finished": [result == {"FINISHED"} for result in results], "bones": len(other.data.bones)}


def bake(folder: Path) -> dict[str, Any]:
    avatar = new_avatar("baked")
    rig, scene = avatar.armature, bpy.context.scene
    restless(rig)
    scene.frame_start, scene.frame_end = 1, 12
    choose(rig)
    wanted = [matrices(rig, frame) for frame in FRAMES]
    scene.frame_set(2)
    bpy.ops.effigy.bake_motion(step=1)
    answer: dict[str, Any] = {"frame": scene.frame_current, "action": rig.animation_data.action.name}
    answer["error"] = float(np.abs(np.array([matrices(rig, frame) for frame in FRAMES]) - wanted).max())
    answer["moved"] = float(np.abs(wanted[0] - wanted[1]).max())
    answer["switches"] = [rig[key] for key in rig.keys() if key.startswith("ik") or key == "look_at"]
    answer["curl"] = rig.pose.bones["hand.R"]["curl_index"]
    bpy.ops.effigy.bake_motion(step=5)
    answer["coarse"] = float(np.abs(matrices(rig, 11) - wanted[2]).max())
    return answer


def usd(folder: Path) -> dict[str, Any]:
    avatar = new_avatar("usd")
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = 1, 12
    restless(avatar.armature)
    choose(avatar.armature)
    path = folder / "avatar.usdc"
    if not has_usd():
        said = refused(bpy.ops.effigy.export_usd, filepath=str(path))
        return {"has_usd": False, "refused": said, "left": path.exists()}
    results = [bpy.ops.effigy.export_usd(filepath=str(path), animated_splats=True)]
    places = {str(frame): vertices(avatar.proxy, frame) for frame in FRAMES}
    for frame in FRAMES:
        scene.frame_set(frame)
        results.append(bpy.ops.effigy.export_splats(filepath=str(folder / f"usd_{frame}.ply")))
    np.savez(folder / "usd.npz", **places)
    return {"has_usd": True, "finished": [result == {"FINISHED"} for result in results]}


def main() -> int:
    folder = Path(sys.argv[1])
    answer = {}
    for question in (splats, gltf, bvh, bake, usd):
        bpy.ops.wm.read_homefile(use_factory_startup=True)
        bpy.data.batch_remove(list(bpy.data.objects))
        blender_addon.register()
        answer[question.__name__] = question(folder)
        blender_addon.unregister()
    print("ANSWER " + json.dumps({"version": bpy.app.version_string, **answer}), flush=True)
    return 0


if __name__ == "__main__":
    code = main()
    # The wheel of Blender 4.2 crashes when it ends after its own glTF exporter has run, be it with a cube.
    os._exit(code)
