"""Further photos of the oracle figures, from behind: `python -m tests.oracles.back_photos [--figures dev1] [--dev]`.

For each photo of `figures.py` its folder gets `back/`:

- `round.png`: the camera has gone round; same stance, same lamp.
- `turned.png`: the person has turned round and stands as in the figure's other photo, in that photo's light.
- `print_round.png`, `print_turned.png`, `print_180.png`: the same two, and the truth at 180 degrees, with a large print
  between the shoulder blades, which no rule can guess.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.oracles.bodies import PosedBody, load_body, stand
from tests.oracles.figures import MakerSettings, dress_up, frame_camera, make_all, view_camera
from tests.oracles.meshes import Mesh
from tests.oracles.scene import Studio, compose_photo, orbit
from tests.oracles.stances import pose_of
from tests.oracles.wardrobe import DEVELOPMENT, REPORTED, FigureSpec, Shot

ROOT = Path(__file__).resolve().parents[2]
PRINT = ((0.95, 0.72, 0.10), (0.10, 0.20, 0.62))
"""Ring and disc of the print, display sRGB."""

RADIUS_M = 0.11


def printed(meshes: list[Mesh], posed: PosedBody) -> list[Mesh]:
    """The figure's meshes with a print on all cloth between the shoulder blades."""
    body = posed.body
    neck, pelvis = (posed.joints_m[body.joint(name)] for name in ("neck", "pelvis"))
    left, right = (posed.joints_m[body.joint(f"{side}_shoulder")] for side in ("left", "right"))
    across = (left - right) / np.linalg.norm(left - right)
    up = neck - pelvis
    up = (up - (up @ across) * across) / np.linalg.norm(up - (up @ across) * across)
    behind = -np.cross(across, up)
    centre = pelvis + 0.62 * (neck - pelvis)
    made = []
    for mesh in meshes:
        if mesh.surface not in ("cloth", "shiny"):
            made.append(mesh)
            continue
        offset = mesh.points_m - centre
        radius = np.hypot(offset @ across, offset @ up)
        here = (offset @ behind > 0.02) & (radius < RADIUS_M)
        drawn = np.where((radius < 0.6 * RADIUS_M)[:, None], PRINT[1], PRINT[0])
        colours = np.where(here[:, None], drawn, mesh.colours)
        made.append(replace(mesh, colours=colours))
    return made


def photograph(spec: FigureSpec, number: int, settings: MakerSettings, threads: int, folder: Path) -> None:
    """Make the pictures of one photo's folder; those that are there stay."""
    shot, other = spec.shots[number], spec.shots[1 - number]
    x, y, z = other.light.position_m
    # who turns round before camera and lamp is seen like somebody round whom both have gone
    turned = replace(other, light=replace(other.light, position_m=(-x, y, -z)))
    (folder / "back").mkdir(exist_ok=True)
    for name, seen in (("round", shot), ("turned", turned)):
        _from_behind(spec, seen, settings, threads, folder / "back", name, truth=seen is shot)


def _from_behind(
    spec: FigureSpec, shot: Shot, settings: MakerSettings, threads: int, folder: Path, name: str, truth: bool
) -> None:
    body = load_body(spec.body)
    posed = stand(body, pose_of(body, shot.stance))
    plain = dress_up(spec, posed, settings.detail)
    camera, centre = frame_camera(plain, shot, settings)
    behind = orbit(camera, centre, 180)
    parts = [body.joint(f"{side}_{part}") for side in ("left", "right") for part in ("ankle", "foot")]
    for prefix, meshes in (("", plain), ("print_", printed(plain, posed))):
        if (folder / f"{prefix}{name}.png").is_file():
            continue
        studio = Studio(meshes, shot.light, settings.samples, threads)
        feet = posed.joints_m[parts] * [1, 0, 1]
        picture = compose_photo(studio.shoot(behind), behind, feet, "plain", shot.tint, shot.noise, spec.seed + 1)
        if prefix and truth:
            studio.set_samples(settings.view_samples)
            view = studio.shoot(view_camera(camera, centre, 180, settings.view_width))
            Image.fromarray(view).save(folder / "print_180.png")
        Image.fromarray(picture).save(folder / f"{prefix}{name}.png")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", default="", help="names separated by commas; default all")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "figures")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--poses", default="1")
    parser.add_argument("--dev", action="store_true", help="the development figures instead of the reported ones")
    given = parser.parse_args(arguments)
    settings = MakerSettings()
    for spec in DEVELOPMENT if given.dev else REPORTED:
        if given.figures and spec.name not in given.figures.split(","):
            continue
        for pose in (int(p) - 1 for p in given.poses.split(",")):
            (folder,) = make_all((spec,), given.out, settings, given.threads, (pose,))
            began = time.perf_counter()
            photograph(spec, pose, settings, given.threads, folder)
            print(f"back of {folder.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            print(folder, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
