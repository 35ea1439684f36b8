"""Portraits without an image model: the laws of the map, the studio, the demo photo to a bust that moves, bad input."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.__main__ import main
from backend.context import Context
from backend.diffusion.weights import Weights
from backend.errors import UserError
from backend.human.bust import Bust
from backend.methods import portrait
from backend.methods.portrait import choose_way, face_turn_deg, notes, stages
from backend.perception.photo import read_photo
from backend.pipeline import Run, run
from backend.preview import BACKGROUND, draw_head
from backend.splats.bound import BoundSplats, Kind
from backend.splats.colour import to_lab, to_rgb
from backend.splats.palette import Canvas, palette_statistics, picture_statistics, restyled, statistics
from backend.splats.palette_detail import solid_noise
from backend.splats.palette_light import STUDIO
from blender_addon.shared.avatar import read_bundle
from blender_addon.shared.methods import PortraitRequest
from blender_addon.shared.styles import STYLES, Palette, expected_way, find_style, style_settings
from tests.blender.interpreters import find_blender

ROOT = Path(__file__).parent.parent.parent
PHOTO = ROOT / "scripts" / "data" / "collins.png"
NOTHING = Weights(Path("no models here"))


# ---- the map ---------------------------------------------------------------------------------------------------------


def people_colours(count: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    lab = rng.normal(size=(count, 3)) @ np.diag([9.0, 4.0, 5.0]) + [55, 8, 14]
    return to_rgb(lab)


@pytest.mark.parametrize("palette", [Palette((62, 6, 30), (5, 0.5, 3), 1.0), Palette((40, -20, 25), (6, -2, 4), 2.0)])
def test_the_colours_get_the_palettes_statistics(palette: Palette) -> None:
    colours, weights = people_colours(), np.random.default_rng(1).uniform(0.1, 1, 4000)
    wanted = palette_statistics(palette)
    lab = restyled(colours, wanted, weights)
    mean = np.average(lab, axis=0, weights=weights)
    covariance = np.cov(lab.T, aweights=weights, bias=True)
    assert np.allclose(mean, wanted.mean.numpy(), atol=1e-6)
    assert np.allclose(covariance, wanted.covariance.numpy(), atol=5e-3)


def test_no_map_with_the_same_statistics_moves_the_colours_less() -> None:
    """Against whitening and colouring turned by any rotation."""
    colours = people_colours()
    lab = to_lab(colours).astype(np.float64)
    wanted = palette_statistics(Palette((60, 0, 30), (8, 2, 5), 3.0))
    own = statistics(colours)
    cost = np.square(restyled(colours, wanted, gain=1e9) - lab).sum(axis=1).mean()

    def root(matrix: np.ndarray, power: float) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return vectors @ np.diag(values**power) @ vectors.T

    rng = np.random.default_rng(2)
    for _ in range(20):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        other = root(wanted.covariance.numpy(), 0.5) @ turn @ root(own.covariance.numpy(), -0.5)
        moved = (lab - own.mean.numpy()) @ other.T + wanted.mean.numpy()
        assert np.square(moved - lab).sum(axis=1).mean() >= cost - 1e-2


def test_a_plain_shirt_does_not_become_a_pattern() -> None:
    colours = to_rgb(np.random.default_rng(0).normal(size=(3000, 3)) * 0.4 + [50, 0, 0])
    loud = palette_statistics(Palette((50, 0, 0), (30, 0, 0), 10.0))
    assert restyled(colours, loud).std(axis=0).max() < 2.0


def test_a_style_picture_counts_without_its_plain_background() -> None:
    picture = np.full((120, 160, 3), 240, np.uint8)
    picture[30:90, 50:110] = (180, 40, 30)
    found = picture_statistics(picture)
    assert np.allclose(found.mean.numpy(), to_lab(np.array([[180, 40, 30]]) / 255)[0], atol=1.0)
    noisy = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    assert np.allclose(picture_statistics(noisy).mean.numpy(), statistics(noisy.reshape(-1, 3) / 255).mean.numpy())


def test_noise_is_smooth_and_centred() -> None:
    points = np.random.default_rng(0).uniform(-0.3, 0.3, (5000, 3))
    noise = solid_noise(points, 0.05, 1)
    assert abs(noise.mean()) < 0.1 and 0.3 < noise.std() < 1.5
    assert abs(solid_noise(points + 1e-5, 0.05, 1) - noise).max() < 0.02


# ---- the demo photo, once --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """The demo portrait, in bronze."""

    folder: Path
    values: dict[str, Any]
    finished: Run

    @property
    def bust(self) -> Bust:
        return self.values["bust"]

    @property
    def styled(self) -> BoundSplats:
        return self.values["styled"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("portrait")
    request = PortraitRequest(preset="fast", style="bronze")
    given = {
        "photo": read_photo(PHOTO),
        "request": request,
        "folder": folder,
        "own_body": None,
        "models": NOTHING,
    }
    finished = run(stages(request, NOTHING), given, Context.quiet())
    return Made(folder, dict(finished.values), finished)


@pytest.fixture(scope="module")
def canvas(made: Made) -> Canvas:
    """Every sixth Gaussian: quick to paint."""
    bust = made.bust
    return Canvas.of(
        Bust(bust.body, bust.personal, bust.vertices_m, bust.splats.select(np.arange(0, len(bust.splats), 6)))
    )


@pytest.mark.slow
def test_the_demo_photo_becomes_a_bust(made: Made) -> None:
    cloud, avatar = read_bundle(made.folder)
    bust = made.bust
    assert 60_000 < len(cloud) < 260_000 and cloud.sh_rest.shape[1] == 0
    assert (made.folder / "preview.png").is_file()
    assert any("rule" in name for name in made.finished.outcome.generators)
    height = np.ptp(cloud.positions_m[:, 1])
    assert 0.4 < height < 0.75, "head, neck and upper chest"
    assert np.ptp(cloud.positions_m[:, 0]) < 0.55, "no arms"
    # the proxy ends where the Gaussians do, and everything below the neck is one block
    assert avatar.vertices_m[:, 1].min() > cloud.positions_m[:, 1].min() - 0.02
    chest = avatar.vertices_m[:, 1] < avatar.joints_m[12, 1] - 0.1
    assert (avatar.skin_weights[chest].max(axis=1) > 0.9).all()
    used = np.unique(avatar.triangles[avatar.bind_triangle])
    assert used.max() < len(bust.vertices_m)


@pytest.mark.slow
def test_the_lower_edge_is_clean(made: Made) -> None:
    """What reaches below the cut does so by less than the rounding of the closing surface."""
    from backend.human.bust import BustSettings, find_cut

    bust, settings = made.bust, BustSettings()
    points = bust.splats.posed(bust.vertices_m, bust.vertices_m, bust.body.triangles)
    distance = find_cut(bust.personal.joints_m).distance_m(points.positions_m)
    assert distance.min() > -settings.bulge_m - 0.004
    rim = (distance > -0.002) & (distance < 0.004) & (bust.splats.kind == Kind.CLOTH)
    assert np.median(points.scales_m[rim].max(axis=1)) < 0.002


@pytest.mark.slow
def test_only_colours_change(made: Made) -> None:
    before, after = made.bust.splats, made.styled
    for item in fields(BoundSplats):
        same = np.array_equal(getattr(before, item.name), getattr(after, item.name))
        assert same == (item.name != "colours"), item.name


@pytest.mark.slow
def test_strength_goes_from_the_photo_to_the_style(canvas: Canvas) -> None:
    look, photo = STYLES["golden statue"].look, canvas.bust.splats.colours
    assert canvas.paint(look, None, 0.0) is canvas.bust.splats
    away = [
        float(np.linalg.norm(canvas.paint(look, None, strength).colours - photo, axis=1).mean())
        for strength in (0.25, 0.5, 1.0)
    ]
    assert 0 < away[0] < away[1] < away[2]
    assert away[1] == pytest.approx(0.5 * away[2], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", STYLES)
def test_every_style_paints_and_is_told_from_the_others(canvas: Canvas, name: str) -> None:
    painted = canvas.paint(STYLES[name].look, None, 1.0, seed=1).colours
    again = canvas.paint(STYLES[name].look, None, 1.0, seed=1).colours
    assert np.isfinite(painted).all() and np.array_equal(painted, again)
    skin = canvas.surface.kind == Kind.SKIN
    moved = float(abs(painted - canvas.bust.splats.colours)[skin].mean())
    assert moved < 5e-3 if name == "realistic" else moved > 0.03


@pytest.mark.slow
@pytest.mark.parametrize("name", ["golden statue", "bronze", "marble", "clay"])
def test_statues_are_of_one_material_lit_from_one_side(canvas: Canvas, name: str) -> None:
    """No flat tint: light follows the normals; and one hue for skin, hair and clothes."""
    surface = canvas.surface
    lab = to_lab(canvas.paint(STYLES[name].look, None, 1.0).colours)
    key = np.array(STUDIO[0].direction) / np.linalg.norm(STUDIO[0].direction)
    open_skin = (surface.kind == Kind.SKIN) & (surface.sky > 0.5)
    towards = surface.normals[open_skin] @ key
    light = lab[open_skin, 0]
    assert light[towards > 0.8].mean() > light[towards < -0.2].mean() + 8
    assert np.corrcoef(towards, light)[0, 1] > 0.35
    palette = STYLES[name].look.skin
    assert palette is not None
    mean = palette_statistics(palette).mean.numpy()
    if np.hypot(*mean[1:]) > 12 and name != "bronze":  # bronze has green in its hollows
        for kind in (Kind.SKIN, Kind.HAIR, Kind.CLOTH):
            hue = lab[surface.kind == kind, 1:].mean(axis=0)
            turn = np.arccos(hue @ mean[1:] / np.linalg.norm(hue) / np.linalg.norm(mean[1:]))
            assert np.degrees(turn) < 25, (kind, hue)


@pytest.mark.slow
def test_a_pictures_palette_reaches_the_bust(canvas: Canvas) -> None:
    rng = np.random.default_rng(0)
    sea = to_rgb(rng.normal(size=(6000, 3)) @ np.diag([10.0, 3.0, 6.0]) + [45, -8, -25]).reshape(60, 100, 3)
    painted = canvas.paint(STYLES["realistic"].look, (255 * sea).astype(np.uint8), 1.0).colours
    outside = np.isin(canvas.surface.kind, (Kind.SKIN, Kind.HAIR, Kind.CLOTH))
    mean = statistics(painted[outside], canvas.surface.area_m2[outside]).mean.numpy()
    assert np.allclose(mean, [45, -8, -25], atol=4)


@pytest.mark.slow
def test_actions_do_not_tear_and_the_mouth_has_an_inside(made: Made) -> None:
    cloud, avatar = read_bundle(made.folder)
    background = np.round(255 * np.array(BACKGROUND))

    def face(actions: dict[str, float]) -> np.ndarray:
        return draw_head(cloud, avatar, actions, 0.0, 256)[118:190, 98:158].astype(float)

    closed, opened = face({}), face({"jawOpen": 0.6})
    blink = face({"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0})
    for picture in (closed, opened, blink):
        assert (abs(picture - background).max(axis=2) > 12).all(), "the background shines through the face"
    darker = closed.mean(axis=2) - opened.mean(axis=2)
    assert (darker > 25).sum() > 40, "an open mouth is dark inside"
    assert abs(blink - closed).mean() > 0.5


@pytest.mark.slow
@pytest.mark.blender
def test_in_blender_it_blinks_speaks_and_turns(made: Made, tmp_path: Path) -> None:
    script = ROOT / "tests" / "blender" / "inside_portrait.py"
    environment = os.environ | {"BLENDER_USER_RESOURCES": str(tmp_path)}
    command = [find_blender("this"), str(script), str(made.folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("ANSWER "))
    answer = json.loads(line.removeprefix("ANSWER "))
    assert answer["count"][0] == answer["count"][1]
    assert 0.004 < answer["blink_m"] < 0.02 and answer["blink_share"] > 0.002
    assert answer["blink_far_from_eyes"] == 0
    assert answer["jaw_m"] > 0.01
    assert answer["turn_m"] > 0.03 and answer["chest_m"] < 1e-4 and answer["still_share"] > 0.2


# ---- what is asked for -----------------------------------------------------------------------------------------------


def test_styles_have_names_of_their_own() -> None:
    names = [name for style in STYLES.values() for name in (style.name, *style.other_names)]
    assert len({find_style(name) for name in names}) == len(STYLES) >= 6
    assert find_style("Golden_Statue") is STYLES["golden statue"] and find_style("a green robot") is None
    for style in STYLES.values():
        assert style.prompt and style.negative and style.title


def test_own_words_need_a_model() -> None:
    with pytest.raises(UserError, match="golden statue.*models fetch sd15") as error:
        choose_way(PortraitRequest(style="a green\nrobot"), NOTHING)
    assert error.value.code == 3 and "\n" not in error.value.message
    assert choose_way(PortraitRequest(style="a robot", style_image="style_image-0.png"), NOTHING) == "palette"
    assert choose_way(PortraitRequest(style="Marble"), NOTHING) == "palette"
    for way in ("sas", "edit"):
        with pytest.raises(UserError, match="models fetch") as error:
            choose_way(PortraitRequest(way=way), NOTHING)
        assert error.value.code == 3


@pytest.mark.parametrize(
    ("asked", "way", "words"),
    [
        (("bronze", False, "auto", False, False, False), "palette", "no image model"),
        (("a robot", False, "auto", False, False, True), "none", "fetch sd15"),
        (("a robot", True, "auto", False, False, True), "palette", "minute"),
        (("a robot", False, "auto", True, False, True), "sas", "Style Aligned"),
        (("bronze", False, "auto", True, False, False), "palette", "hours"),
        (("bronze", False, "sas", True, False, False), "sas", "hours"),
        (("bronze", False, "edit", True, False, True), "none", "flux2-klein"),
        ((" ", False, "auto", True, True, True), "none", "Name a style"),
    ],
)
def test_the_panel_says_which_way_it_goes(asked: tuple[Any, ...], way: str, words: str) -> None:
    style, picture, wish, installed, editor, fast = asked
    found = expected_way(style, picture, wish, installed=installed, editor=editor, fast=fast)
    assert found[0] == way and words in found[1]


def test_what_has_no_influence_is_said() -> None:
    lines = notes(PortraitRequest(negative="hats", style="marble", style_image="a.png"), "palette")
    assert len(lines) == 2 and "marble" in lines[1]
    assert notes(PortraitRequest(), "palette") == () == notes(PortraitRequest(negative="hats"), "sas")


def test_the_command_line_takes_words_or_a_picture(tmp_path: Path) -> None:
    assert style_settings("clay") == {"style": "clay"}
    assert style_settings(str(PHOTO)) == {"style": "", "style_image": str(PHOTO)}
    with pytest.raises(ValueError, match="no picture"):
        style_settings(str(tmp_path / "nothing.png"))


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("--style", ""), "style is empty; name one of: golden statue", 2),
        (("--style", "a robot"), "no preset is called 'a robot'", 3),
        (("--style", "nothing.png"), "no picture nothing.png", 2),
        (("--style", "clay", "--set", "style=clay"), "use one of them", 2),
        (("--set", "strength=2"), "strength must lie between", 2),
        (("--set", f"style_image={Path(__file__)}"), "Style picture", 2),
        (("--set", "way=sas"), "models fetch", 3),
    ],
)
def test_bad_requests_end_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
    code: int,
) -> None:
    monkeypatch.setenv("EFFIGY_MODELS", str(tmp_path / "models"))
    command = ["generate", "portrait", "--image", str(PHOTO), "--out", str(tmp_path / "out"), *arguments]
    assert main(command) == code
    told = capfd.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("error: ") and words in told[0], told
    assert not (tmp_path / "out").exists()


def test_an_empty_prompt_is_fine_beside_a_picture() -> None:
    assert PortraitRequest(style="", style_image="a.png").style == ""
    with pytest.raises(ValueError, match="style is empty"):
        PortraitRequest(style="  ")


# ---- photos without a usable face ------------------------------------------------------------------------------------


def landmarks(turn_deg: float) -> np.ndarray:
    """Three landmarks of a round head; the others do not matter."""
    angle = np.radians(turn_deg)
    face = np.zeros((478, 3))
    face[1, 0] = 110 * np.sin(angle)
    face[234, 0], face[454, 0] = -100 * np.cos(angle), 100 * np.cos(angle)
    return face + 300


@dataclass(frozen=True)
class SomePerson:
    """What `_find` looks at."""

    face_px: np.ndarray
    warnings: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("face", "words"),
    [(landmarks(0)[:0], "No face was recognised"), (landmarks(58), "in profile, turned by about 58")],
)
def test_a_photo_without_a_usable_face_is_refused(
    monkeypatch: pytest.MonkeyPatch, face: np.ndarray, words: str
) -> None:
    monkeypatch.setattr(portrait, "find_person", lambda *_, **__: SomePerson(face))
    with pytest.raises(UserError, match=words) as error:
        portrait._find(SimpleNamespace(image=None), PortraitRequest(), Context.quiet())  # type: ignore[arg-type]
    assert error.value.kind == "BAD_IMAGE" and "use " in error.value.message


def test_a_turned_face_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for turn, said in ((5, False), (40, True)):
        assert face_turn_deg(landmarks(turn)) == pytest.approx(turn, abs=0.1)
        person = SomePerson(landmarks(turn))
        monkeypatch.setattr(portrait, "find_person", lambda *_, found=person, **__: found)
        found = portrait._find(SimpleNamespace(image=None), PortraitRequest(), Context.quiet())  # type: ignore[arg-type]
        assert any("turned" in line for line in found.warnings) == said


@pytest.mark.slow
def test_of_several_people_the_largest_is_taken_and_said() -> None:
    photo = Image.open(PHOTO).convert("RGB")
    pair = np.concatenate([np.asarray(photo.resize((384, 384))), np.asarray(photo)[:384, 60:440]], axis=1)
    found = portrait._find(SimpleNamespace(image=pair), PortraitRequest(), Context.quiet())  # type: ignore[arg-type]
    assert any("2 people" in line and "person=1" in line for line in found.warnings)
    assert found.face_px[:, 0].mean() > 384
