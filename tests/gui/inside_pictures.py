"""Plays what the README shows, in a real Blender: `blender -P inside_pictures.py`; see pictures.py.

The panel before, during and after a job and after one that failed, the avatar in a pose, and an F12 render of it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bpy
from mathutils import Euler, Vector

ROOT = Path(__file__).resolve().parent.parent.parent
OUT = Path("/out")
MOTIONS = ROOT / "tests" / "motion" / "data"
PATIENCE_S = 1500.0


def session() -> Any:
    from bl_ext.user_default.effigy.blender_addon import session as module

    return module.current()


def area() -> bpy.types.Area:
    return next(a for a in bpy.context.window_manager.windows[0].screen.areas if a.type == "VIEW_3D")


def view() -> dict[str, Any]:
    region = next(r for r in area().regions if r.type == "WINDOW")
    return {"window": bpy.context.window_manager.windows[0], "area": area(), "region": region}


def call(operator: str, **options: Any) -> None:
    group, name = operator.split(".")
    with bpy.context.temp_override(**view()):
        getattr(getattr(bpy.ops, group), name)("EXEC_DEFAULT", True, **options)


def after(seconds: float) -> Callable[[], bool]:
    import time

    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def shoot(name: str) -> None:
    """The whole screen, and where the sidebar and the 3D view are in it, pixels from the top left."""
    subprocess.run(["import", "-window", "root", str(OUT / f"{name}.png")], check=True)
    window = bpy.context.window_manager.windows[0]
    regions = {r.type: [r.x, window.height - r.y - r.height, r.width, r.height] for r in area().regions}
    regions["AREA"] = [area().x, window.height - area().y - area().height, area().width, area().height]
    (OUT / f"{name}.json").write_text(json.dumps(regions), "utf-8")


def build_studio() -> None:
    """A floor that rises into a wall, a soft key light, a rim light and a camera."""
    for ob in list(bpy.data.objects):
        bpy.data.objects.remove(ob)
    profile = [(0.0, -9.0), (0.0, 1.2)]
    profile += [(1.5 - 1.5 * math.cos(a), 1.2 + 1.5 * math.sin(a)) for a in (k * math.pi / 32 for k in range(1, 17))]
    profile.append((9.0, 2.7))
    points = [(x, y, z) for z, y in profile for x in (-14.0, 14.0)]
    faces = [(2 * k, 2 * k + 1, 2 * k + 3, 2 * k + 2) for k in range(len(profile) - 1)]
    mesh = bpy.data.meshes.new("Backdrop")
    mesh.from_pydata(points, [], faces)
    mesh.polygons.foreach_set("use_smooth", [True] * len(faces))
    backdrop = bpy.data.objects.new("Backdrop", mesh)
    material = bpy.data.materials.new("Backdrop")
    material.diffuse_color = (0.36, 0.42, 0.47, 1.0)
    shader = next(n for n in node_tree(material).nodes if n.bl_idname == "ShaderNodeBsdfPrincipled")
    shader.inputs["Base Color"].default_value = (0.33, 0.40, 0.46, 1.0)
    shader.inputs["Roughness"].default_value = 0.85
    mesh.materials.append(material)
    bpy.context.scene.collection.objects.link(backdrop)
    backdrop.hide_select = True
    for name, place, size, watts in (("Key", (-2.6, -3.2, 3.8), 1.6, 330.0), ("Rim", (3.0, 1.0, 3.2), 1.2, 120.0)):
        light = bpy.data.lights.new(name, "AREA")
        light.size, light.energy = size, watts
        add_looking(name, light, place, (0.0, 0.0, 1.0))
    camera = bpy.data.cameras.new("Portrait")
    camera.lens = 70.0
    bpy.context.scene.camera = add_looking("Portrait", camera, (1.0, -4.9, 1.2), (0.0, 0.0, 0.95))
    world = bpy.context.scene.world
    next(n for n in node_tree(world).nodes if n.bl_idname == "ShaderNodeBackground").inputs[1].default_value = 6.0


def node_tree(owner: Any) -> Any:
    if owner.node_tree is None:
        owner.use_nodes = True
    return owner.node_tree


def add_looking(name: str, data: Any, place: tuple[float, ...], target: tuple[float, ...]) -> bpy.types.Object:
    ob = bpy.data.objects.new(name, data)
    bpy.context.scene.collection.objects.link(ob)
    ob.location = place
    ob.rotation_euler = (Vector(target) - Vector(place)).to_track_quat("-Z", "Y").to_euler()
    return ob


def look(rotation: tuple[float, float, float], height_m: float, distance_m: float) -> None:
    space = area().spaces[0]
    space.region_3d.view_location, space.region_3d.view_distance = (0.2, 0.0, height_m), distance_m
    space.region_3d.view_rotation = Euler([math.radians(angle) for angle in rotation]).to_quaternion()
    space.lens = 60.0


def has_tab() -> bool:
    """Choose our tab; the sidebar must have been drawn once."""
    try:
        next(r for r in area().regions if r.type == "UI").active_panel_category = "Effigy"
    except AttributeError:
        return False
    return True


def play() -> Iterator[Callable[[], object]]:
    area().spaces[0].show_region_ui = True
    bpy.context.preferences.system.use_region_overlap = False
    build_studio()
    look((84.0, 0.0, 14.0), 0.88, 3.0)
    space = area().spaces[0]
    space.overlay.show_floor = space.overlay.show_axis_x = space.overlay.show_axis_y = space.overlay.show_extras = False
    space.overlay.show_cursor = space.overlay.show_relationship_lines = False
    space.show_gizmo = False
    space.shading.color_type = "MATERIAL"
    yield after(1.5)
    yield has_tab
    yield after(1.0)
    if os.environ.get("EFFIGY_PICTURE_BUNDLE"):
        call("effigy.drop_photo", filepath=str(ROOT / "scripts" / "data" / "collins.png"))
        call("effigy.import_avatar", directory=os.environ["EFFIGY_PICTURE_BUNDLE"])
        bpy.context.view_layer.objects.active.name = "collins"
    else:
        yield from make_avatar()
    yield after(3.0)
    shoot("done")
    yield from pose()


def make_avatar() -> Iterator[Callable[[], object]]:
    """A real job, looked at before, in the middle and afterwards, and one with a picture of nobody."""
    call("effigy.drop_photo", filepath=str(ROOT / "scripts" / "data" / "collins.png"))
    yield after(4.0)
    shoot("ready")
    call("effigy.generate")
    queue = session().queue
    yield lambda: queue.jobs[0].fraction > 0.7 and queue.jobs[0].preview is not None
    yield after(2.0)
    shoot("running")
    yield lambda: session().arrived
    yield after(4.0)
    nobody = bpy.data.images.new("garden", 320, 240)
    nobody.generated_type = "COLOR_GRID"
    bpy.context.scene.effigy.image = nobody
    call("effigy.generate")
    yield lambda: queue.jobs[1].status == "failed"
    yield after(3.0)
    shoot("failed")
    call("effigy.dismiss", job_id=queue.jobs[1].job_id)
    bpy.context.scene.effigy.image = bpy.data.images["collins.png"]


def pose() -> Iterator[Callable[[], object]]:
    """A motion file: a frame of it in the view, another one by F12."""
    call("effigy.import_motion", filepath=str(MOTIONS / "fair1_dab.bvh"))
    bpy.context.scene.frame_set(60)
    yield after(6.0)
    shoot("posed")
    rig, scene = bpy.context.view_layer.objects.active, bpy.context.scene
    scene.frame_set(120)
    place = rig.matrix_world @ rig.pose.bones["pelvis"].head
    scene.camera.location += Vector((place.x, place.y, 0.1))
    add_shadow(next(ob for ob in rig.children if ob.type == "MESH"))
    scene.render.engine = "CYCLES"
    scene.cycles.samples, scene.cycles.use_denoising = 40, True
    scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = 520, 640, 100
    scene.view_settings.view_transform = "Standard"
    scene.render.filepath = str(OUT / "f12.png")
    call("effigy.setup_compositing")
    partner = next(other for other in bpy.data.scenes if other != scene)
    partner.view_layers[0].layer_collection.children["Shadow"].exclude = True
    yield after(1.0)
    bpy.ops.render.render(write_still=True)


def add_shadow(proxy: bpy.types.Object) -> None:
    """Drawn splats throw no shadow: a copy of the posed body that only the light sees does it for them."""
    collection = bpy.data.collections.new("Shadow")
    bpy.context.scene.collection.children.link(collection)
    hidden, proxy.hide_viewport = proxy.hide_viewport, False
    evaluated = proxy.evaluated_get(bpy.context.evaluated_depsgraph_get())
    shadow = bpy.data.objects.new("Shadow", bpy.data.meshes.new_from_object(evaluated))
    proxy.hide_viewport = hidden
    shadow.matrix_world = proxy.matrix_world
    shadow.visible_camera = False
    collection.objects.link(shadow)


def main() -> None:
    import time

    steps = play()
    state: dict[str, Any] = {"condition": after(0.0), "limit": time.monotonic() + PATIENCE_S}

    def tick() -> float | None:
        try:
            if time.monotonic() > state["limit"]:
                raise TimeoutError(str(session().queue.jobs))
            if state["condition"]():
                state["condition"] = next(steps)
        except StopIteration:
            bpy.ops.wm.quit_blender()
            return None
        except Exception:
            traceback.print_exc()
            bpy.ops.wm.quit_blender()
            return None
        return 0.1

    bpy.context.preferences.view.show_splash = False
    bpy.app.timers.register(tick, first_interval=3.0, persistent=True)


main()
