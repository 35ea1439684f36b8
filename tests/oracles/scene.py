"""Draws oracle figures with Blender's Cycles (the bpy wheel) and composes photographs from the pictures."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.oracles.meshes import Array, Mesh, noise

Background = Literal["plain", "gradient", "texture"]
ROUGHNESS = {"skin": 0.55, "eye": 0.12, "cloth": 0.85, "shiny": 0.35, "leather": 0.4, "hair": 0.5}


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: OpenCV axes, w2c [4,4], focal length in px, principal point in the middle of the picture."""

    w2c: Array
    focal_px: float
    width: int
    height: int

    def to_camera(self, points_m: Array) -> Array:
        """World points [N,3] in the camera's frame."""
        return points_m @ self.w2c[:3, :3].T + self.w2c[:3, 3]

    def project(self, points_m: Array) -> Array:
        """World points [N,3] to pixels [N,2]."""
        local = self.to_camera(points_m)
        return local[:, :2] / local[:, 2:] * self.focal_px + [self.width / 2, self.height / 2]

    def scaled(self, width: int) -> Camera:
        """The same view in another resolution."""
        factor = width / self.width
        return Camera(self.w2c, self.focal_px * factor, width, round(self.height * factor))


def look_from(centre_m: Array, distance_m: float, pitch_deg: float, focal_px: float, size: tuple[int, int]) -> Camera:
    """A camera on the +Z side that looks at ``centre_m``; positive pitch looks down. size: (width, height)."""
    pitch = np.radians(pitch_deg)
    back = np.array([0.0, np.sin(pitch), np.cos(pitch)])  # from the centre to the camera
    down = np.array([0.0, -np.cos(pitch), np.sin(pitch)])
    rotation = np.stack([np.array([1.0, 0, 0]), down, -back])
    w2c = np.eye(4)
    w2c[:3, :3], w2c[:3, 3] = rotation, -rotation @ (centre_m + distance_m * back)
    return Camera(w2c, focal_px, *size)


def orbit(camera: Camera, centre_m: Array, azimuth_deg: float) -> Camera:
    """Turns a camera about the vertical axis through ``centre_m``; +90 looks at the subject's left side (+X)."""
    a = np.radians(azimuth_deg)
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about = np.eye(4)
    about[:3, :3], about[:3, 3] = turn.T, centre_m - turn.T @ centre_m
    return Camera(camera.w2c @ about, camera.focal_px, camera.width, camera.height)


@dataclass(frozen=True)
class Light:
    """An area light (position in figure axes, metres; power in watts) and an even sky."""

    position_m: tuple[float, float, float] = (-1.6, 2.4, 2.8)
    power_w: float = 220.0
    size_m: float = 1.5
    sky: float = 0.55
    sky_colour: tuple[float, float, float] = (0.85, 0.9, 1.0)


def _to_blender(points: Array) -> Array:
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what Blender's C code prints for every sample (file descriptor 1)."""
    sys.stdout.flush()
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


class Studio:
    """One Cycles scene with a figure in it. Makes a new bpy file: use it in a process of its own."""

    def __init__(self, meshes: list[Mesh], light: Light, samples: int, threads: int) -> None:
        import bpy  # noqa: PLC0415
        import mathutils  # noqa: PLC0415

        self._bpy, self._mathutils = bpy, mathutils
        bpy.ops.wm.read_factory_settings(use_empty=True)
        scene = bpy.context.scene
        scene.render.engine = "CYCLES"
        scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.seed = samples, False, 0
        scene.cycles.use_adaptive_sampling = False
        scene.cycles.max_bounces = 4
        scene.render.film_transparent = True
        scene.render.use_persistent_data = True
        scene.render.threads_mode, scene.render.threads = "FIXED", threads
        scene.view_settings.view_transform = "Standard"
        self._scene = scene
        for number, mesh in enumerate(meshes):
            self._add(number, mesh)
        self._add_light(light)
        data = bpy.data.cameras.new("camera")
        data.sensor_fit, data.sensor_height = "VERTICAL", 36.0
        self._camera = bpy.data.objects.new("camera", data)
        scene.collection.objects.link(self._camera)
        scene.camera = self._camera

    def _add(self, number: int, mesh: Mesh) -> None:
        bpy = self._bpy
        data = bpy.data.meshes.new(f"mesh{number}")
        data.vertices.add(len(mesh.points_m))
        data.vertices.foreach_set("co", _to_blender(mesh.points_m).astype(np.float32).ravel())
        data.loops.add(mesh.triangles.size)
        data.loops.foreach_set("vertex_index", mesh.triangles.astype(np.int32).ravel())
        data.polygons.add(len(mesh.triangles))
        data.polygons.foreach_set("loop_start", np.arange(0, mesh.triangles.size, 3, dtype=np.int32))
        data.polygons.foreach_set("use_smooth", np.ones(len(mesh.triangles), bool))
        layer = data.color_attributes.new("Col", "FLOAT_COLOR", "POINT")
        linear = np.concatenate([np.clip(mesh.colours, 0, 1) ** 2.2, np.ones((len(mesh.colours), 1))], 1)
        layer.data.foreach_set("color", linear.astype(np.float32).ravel())
        data.update(calc_edges=True)
        material = bpy.data.materials.new(f"material{number}")
        material.use_nodes = True
        shader = material.node_tree.nodes["Principled BSDF"]
        shader.inputs["Roughness"].default_value = ROUGHNESS[mesh.surface]
        shader.inputs["Specular IOR Level"].default_value = 0.2 if mesh.surface in ("cloth", "hair") else 0.4
        colour = material.node_tree.nodes.new("ShaderNodeVertexColor")
        colour.layer_name = "Col"
        material.node_tree.links.new(colour.outputs[0], shader.inputs["Base Color"])
        data.materials.append(material)
        self._scene.collection.objects.link(bpy.data.objects.new(f"mesh{number}", data))

    def _add_light(self, light: Light) -> None:
        bpy = self._bpy
        world = bpy.data.worlds.new("world")
        self._scene.world = world
        world.use_nodes = True
        sky = world.node_tree.nodes["Background"].inputs
        sky[0].default_value, sky[1].default_value = (*light.sky_colour, 1.0), light.sky
        data = bpy.data.lights.new("light", "AREA")
        data.energy, data.size = light.power_w, light.size_m
        lamp = bpy.data.objects.new("light", data)
        lamp.location = _to_blender(np.asarray(light.position_m)).tolist()
        aim = self._mathutils.Vector((0, 0, 1.0)) - lamp.location
        lamp.rotation_euler = aim.to_track_quat("-Z", "Y").to_euler()
        self._scene.collection.objects.link(lamp)

    def set_samples(self, samples: int) -> None:
        """Changes the number of samples per pixel."""
        self._scene.cycles.samples = samples

    def shoot(self, camera: Camera) -> NDArray[np.uint8]:
        """Renders RGBA [H,W,4] (straight alpha, display sRGB)."""
        scene = self._scene
        scene.render.resolution_x, scene.render.resolution_y = camera.width, camera.height
        self._camera.data.lens = camera.focal_px / camera.height * 36.0
        rotation = camera.w2c[:3, :3]
        position = -rotation.T @ camera.w2c[:3, 3]
        axes = _to_blender(rotation * np.array([[1], [-1], [-1]]))  # rows: right, up, back
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = axes.T, _to_blender(position)
        self._camera.matrix_world = self._mathutils.Matrix(matrix.tolist())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "view.png"
            scene.render.filepath = str(path)
            scene.render.image_settings.file_format, scene.render.image_settings.color_mode = "PNG", "RGBA"
            with _quiet():
                self._bpy.ops.render.render(write_still=True)
            return np.asarray(Image.open(path).convert("RGBA")).copy()


def compose_photo(
    rgba: NDArray[np.uint8], camera: Camera, feet_m: Array, kind: Background, tint: tuple[float, float, float],
    noise_level: float, seed: int,
) -> NDArray[np.uint8]:  # fmt: skip
    """Puts a figure before a wall and on a floor (y = 0) with soft contact shadows, and adds sensor noise.

    Args:
        rgba: [H,W,4]. feet_m: [N,3] points above which the figure stands. noise_level: sd in display sRGB.

    Returns:
        [H,W,3] uint8.
    """
    height, width = rgba.shape[:2]
    v, u = np.mgrid[0:height, 0:width] + 0.5
    rays = np.stack([(u - width / 2), (v - height / 2), np.full_like(u, camera.focal_px)], -1) / camera.focal_px
    rays = rays @ camera.w2c[:3, :3]
    eye = -camera.w2c[:3, :3].T @ camera.w2c[:3, 3]
    wall_z = float(feet_m[:, 2].mean()) - 1.6
    to_floor = np.where(rays[..., 1] < -1e-6, -eye[1] / np.minimum(rays[..., 1], -1e-6), np.inf)
    to_wall = np.where(rays[..., 2] < -1e-6, (wall_z - eye[2]) / np.minimum(rays[..., 2], -1e-6), np.inf)
    on_floor = to_floor < to_wall
    hit = eye + rays * np.minimum(np.minimum(to_floor, to_wall), 50.0)[..., None]
    base = np.asarray(tint)
    wall = np.broadcast_to(base, rays.shape) * (1 - 0.10 * (v / height - 0.5))[..., None]
    floor = np.broadcast_to(base * 0.72 + [0.02, 0.0, -0.02], rays.shape)
    if kind == "gradient":
        wall = wall * (0.72 + 0.45 * np.exp(-(((u / width - 0.5) / 0.5) ** 2 + (v / height - 0.4) ** 2)))[..., None]
    flat = hit.reshape(-1, 3)
    if kind == "texture":
        grain = 0.025 * noise(flat, 0.08, seed) + 0.03 * noise(flat, 0.5, seed + 1)
        wall = wall * (1 + grain.reshape(height, width)[..., None])
        plank = 0.90 + 0.10 * ((np.floor(hit[..., 0] / 0.14) * 0.37) % 1)
        floor = floor * (plank * (1 + grain.reshape(height, width)))[..., None]
    shadow = np.ones((height, width))
    for foot in feet_m:
        distance = np.linalg.norm((hit - foot)[..., [0, 2]], axis=-1)
        shadow *= 1 - 0.35 * np.exp(-((distance / 0.16) ** 2)) - 0.12 * np.exp(-((distance / 0.45) ** 2))
    back = np.where(on_floor[..., None], floor * shadow[..., None], wall)
    alpha = rgba[..., 3:] / 255.0
    image = rgba[..., :3] / 255.0 * alpha + back * (1 - alpha)
    image = image + np.random.default_rng(seed).normal(0, noise_level, image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
