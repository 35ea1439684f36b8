"""Makes the oracle figures: dressed people with known truth, photographed by Cycles.

Usage: ``python -m tests.oracles.figures [--figures coat,dress] [--out out/figures] [--threads 2] [--dev]``

Each photo gets a folder ``<out>/<hash>/<figure>_<pose>/`` with ``photo.png``, ``truth.npz``, ``views/az+045.png`` and
so on (RGBA) and ``views/other.png`` (another pose from the photo's camera). The hash covers the maker's sources and the
parameters, so a second run reads files. Nothing of the code under judgement is imported.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.oracles.bodies import Array, PosedBody, load_body, stand
from tests.oracles.garments import wear
from tests.oracles.looks import hair_meshes, skin_meshes
from tests.oracles.meshes import Mesh
from tests.oracles.scene import Camera, Studio, compose_photo, look_from, orbit
from tests.oracles.stances import pose_of
from tests.oracles.wardrobe import DEVELOPMENT, REPORTED, FigureSpec, Shot

AZIMUTHS_DEG = (45, -45, 90, 180)
VIEW_ZOOM = 0.88  # the other views' focal length over the photo's, so that a turned figure stays in the picture
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class MakerSettings:
    """Resolution and cost. detail: mesh subdivisions; samples: Cycles samples per pixel of the photo and the views."""

    width: int = 768
    height: int = 1024
    view_width: int = 384
    samples: int = 20
    view_samples: int = 16
    detail: int = 2


@dataclass(frozen=True)
class FigureTruth:
    """One photo and everything that is known about it.

    Attributes:
        photo: uint8 [H,W,3]. alpha: float64 [H,W] 0..1. pose: [55,3] axis-angle. joints_m: [55,3] world.
        centre_m: [3] the figure's centre, about which the other views turn. camera: the photo's.
        views: azimuth (degrees) -> uint8 RGBA [h,w,4]. other_pose: [55,3]; other_joints_m: [55,3]; other_view: RGBA
        of that pose from the photo's camera at the views' resolution.
    """

    name: str
    photo: NDArray[np.uint8]
    alpha: Array
    joint_names: tuple[str, ...]
    joints_m: Array
    pose: Array
    centre_m: Array
    camera: Camera
    views: dict[int, NDArray[np.uint8]]
    other_pose: Array
    other_joints_m: Array
    other_view: NDArray[np.uint8]

    def view_camera(self, azimuth_deg: float) -> Camera:
        """The camera of a view, at the views' resolution."""
        return view_camera(self.camera, self.centre_m, azimuth_deg, self.other_view.shape[1])


def view_camera(camera: Camera, centre_m: Array, azimuth_deg: float, width: int) -> Camera:
    """Turns the photo's camera about the figure's centre, at a view's width and zoom."""
    turned = orbit(camera, centre_m, azimuth_deg).scaled(width)
    return Camera(turned.w2c, turned.focal_px * VIEW_ZOOM, turned.width, turned.height)


def dress_up(spec: FigureSpec, posed: PosedBody, detail: int) -> list[Mesh]:
    """Makes all meshes of a figure in a pose."""
    hidden = np.zeros(len(posed.vertices_m), bool)
    meshes = []
    for number, garment in enumerate(spec.clothes):
        worn = wear(posed, garment, spec.seed * 10 + number, detail)
        meshes += worn.meshes
        hidden |= worn.hidden
    meshes += hair_meshes(posed, spec.hair, spec.hair_colour, spec.seed, detail)
    return meshes + skin_meshes(posed, hidden, spec.face, spec.seed, detail)


def frame_camera(meshes: list[Mesh], shot: Shot, settings: MakerSettings) -> tuple[Camera, Array]:
    """Places the camera so that the figure fills ``shot.fill`` of the picture's height (or 0.94 of its width).

    Returns:
        The camera and the figure's centre [3], the middle of its bounding box.
    """
    points = np.concatenate([mesh.points_m for mesh in meshes])
    centre = (points.min(0) + points.max(0)) / 2
    size, focal = (settings.width, settings.height), shot.focal * settings.height
    distance = shot.focal * np.ptp(points[:, 1]) / shot.fill
    for _ in range(30):
        uv = look_from(centre, distance, shot.pitch, focal, size).project(points)
        tall = np.ptp(uv[:, 1]) / settings.height / shot.fill
        wide = np.abs(uv[:, 0] - settings.width / 2).max() * 2 / settings.width / 0.94
        distance *= max(tall, wide) ** 0.8
    camera = look_from(centre, distance, shot.pitch, focal, size)
    middle = (camera.project(points)[:, 1].min() + camera.project(points)[:, 1].max()) / 2 - settings.height / 2
    lifted = centre - [0, middle / focal * distance, 0]
    return look_from(lifted, distance, shot.pitch, focal, size), centre


def make_photo(spec: FigureSpec, pose_number: int, folder: Path, settings: MakerSettings, threads: int = 2) -> None:
    """Renders one photo with its truth into ``folder`` (written last: truth.npz, so half-made folders are redone)."""
    body, shot = load_body(spec.body), spec.shots[pose_number]
    posed = stand(body, pose_of(body, shot.stance))
    meshes = dress_up(spec, posed, settings.detail)
    camera, centre = frame_camera(meshes, shot, settings)
    studio = Studio(meshes, shot.light, settings.samples, threads)
    front = studio.shoot(camera)
    feet = posed.joints_m[[body.joint(f"{side}_{part}") for side in ("left", "right") for part in ("ankle", "foot")]]
    photo = compose_photo(front, camera, feet * [1, 0, 1], shot.background, shot.tint, shot.noise, spec.seed)
    (folder / "views").mkdir(parents=True, exist_ok=True)
    studio.set_samples(settings.view_samples)
    for azimuth in AZIMUTHS_DEG:
        view = studio.shoot(view_camera(camera, centre, azimuth, settings.view_width))
        Image.fromarray(view).save(folder / "views" / f"az{azimuth:+04d}.png")
    other = stand(body, pose_of(body, spec.other))
    studio = Studio(dress_up(spec, other, settings.detail), shot.light, settings.view_samples, threads)
    Image.fromarray(studio.shoot(view_camera(camera, centre, 0, settings.view_width))).save(
        folder / "views" / "other.png"
    )
    Image.fromarray(photo).save(folder / "photo.png")
    np.savez_compressed(
        folder / "truth.npz",
        joint_names=np.array(body.joint_names),
        joints_m=posed.joints_m,
        joints_camera_m=camera.to_camera(posed.joints_m),
        pose=posed.pose,
        translation_m=posed.translation_m,
        centre_m=centre,
        w2c=camera.w2c,
        intrinsics_px=np.array([camera.focal_px, camera.focal_px, camera.width / 2, camera.height / 2]),
        size_px=np.array([camera.width, camera.height]),
        alpha=front[..., 3],
        view_zoom=VIEW_ZOOM,
        other_pose=other.pose,
        other_joints_m=other.joints_m,
        other_translation_m=other.translation_m,
    )


def load_figure(folder: Path) -> FigureTruth:
    """Reads what :func:`make_photo` wrote."""
    with np.load(folder / "truth.npz", allow_pickle=False) as archive:
        data = {key: archive[key] for key in archive.files}
    width, height = (int(n) for n in data["size_px"])

    def read(path: Path) -> NDArray[np.uint8]:
        return np.asarray(Image.open(path)).copy()

    return FigureTruth(
        name=folder.name,
        photo=read(folder / "photo.png"),
        alpha=data["alpha"] / 255.0,
        joint_names=tuple(str(name) for name in data["joint_names"]),
        joints_m=data["joints_m"],
        pose=data["pose"],
        centre_m=data["centre_m"],
        camera=Camera(data["w2c"], float(data["intrinsics_px"][0]), width, height),
        views={a: read(folder / "views" / f"az{a:+04d}.png") for a in AZIMUTHS_DEG},
        other_pose=data["other_pose"],
        other_joints_m=data["other_joints_m"],
        other_view=read(folder / "views" / "other.png"),
    )


def maker_hash(spec: FigureSpec, settings: MakerSettings) -> str:
    """Names a figure's cache: a hash of the maker's sources, its data, the settings and the figure's own lines."""
    digest = hashlib.sha256(repr((sorted(asdict(settings).items()), spec)).encode())
    here = Path(__file__).parent
    for name in ("bodies", "meshes", "looks", "garments", "scene", "stances", "figures"):
        digest.update((here / f"{name}.py").read_bytes())
    digest.update((here / "data" / "figure_bodies.npz").read_bytes())
    return digest.hexdigest()[:12]


def make_all(
    specs: tuple[FigureSpec, ...], out: Path, settings: MakerSettings, threads: int, poses: tuple[int, ...] = (0, 1)
) -> list[Path]:
    """Makes the photos that are missing and gives all folders."""
    folders = []
    for spec in specs:
        root = out / maker_hash(spec, settings)
        for pose in poses:
            folder = root / f"{spec.name}_{pose + 1}"
            if not (folder / "truth.npz").exists():
                start = time.perf_counter()
                make_photo(spec, pose, folder, settings, threads)
                print(f"figure {folder.name}: {time.perf_counter() - start:.0f} s", flush=True)
            folders.append(folder)
    return folders


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", default="", help="names, or numbers from 1, separated by commas; default all")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "figures")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--poses", default="1,2")
    parser.add_argument("--dev", action="store_true", help="the development figures instead of the reported ones")
    given = parser.parse_args(arguments)
    specs = DEVELOPMENT if given.dev else REPORTED
    if given.figures:
        wanted = given.figures.split(",")
        specs = tuple(s for n, s in enumerate(specs, 1) if s.name in wanted or str(n) in wanted)
    poses = tuple(int(p) - 1 for p in given.poses.split(","))
    for folder in make_all(specs, given.out, MakerSettings(), given.threads, poses):
        print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
