"""The portrait's quality table on its shortest form, and the published measures with small models in their places."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import quality
from scripts.quality_portrait import face_rows, far_row, interval, saturation_rows, strength_rows
from scripts.quality_portrait_result import framed, mean_saturation, score_views
from scripts.quality_portrait_runs import Score, saturations
from tests.diffusion.tiny_vision import Shelf, write_clip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_quick_shows_what_every_part_is_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Directions only, each far beyond what another seed changes; the figures are those of the long table."""
    file = tmp_path / "rows.json"
    settings = [
        "--method",
        "portrait",
        "--quick",
        "--work",
        str(tmp_path),
        "--sheet",
        str(tmp_path),
        "--json",
        str(file),
    ]
    assert quality.main(settings) == 0
    shown = capsys.readouterr().out
    assert file.is_file() and list(tmp_path.glob("portrait_*.png"))
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    sas, sds = rows["portrait_sas_saturation_error"]["value"], rows["portrait_sds_50_saturation_error"]["value"]
    assert sas < 0.75 * sds, "saturation as in the style's pictures"
    far = rows["surface_guided_far_holes"]
    assert far["value"] < 0.7 * far["against_value"], "Gaussians stay on the surface"
    known = rows["identity_term"]
    assert known["value"] > known["against_value"] + 0.1, "the person's tokens make the person"
    assert "too few seeds to claim" in lines["surface_guided_far_holes"]


# ---- what the table says of given runs -------------------------------------------------------------------------------


def score(identity: float = 0.6, error: float = 0.02, faces: int = 1, back: float = -0.5, far: int = 10) -> Score:
    return Score(identity, 1.0, 0.5 + error, 0.5, error, error, faces, back, far, 1000, 1.0)


def test_a_claim_that_fails_says_so() -> None:
    good = {seed: (score(error=0.02 + 0.001 * seed), score(error=0.06)) for seed in range(10)}
    close = {seed: (score(error=0.05 + 0.001 * seed), score(error=0.06)) for seed in range(10)}
    worse = {seed: (score(identity=0.3 + 0.01 * seed), score(identity=0.6)) for seed in range(10)}
    assert saturation_rows("sas", good, "sds_50")[0].note.startswith("held")
    assert saturation_rows("sas", close, "sds_50")[0].note.startswith("FAILED")
    assert saturation_rows("sas", worse, "sds_50")[2].note.startswith("FAILED")
    single = {0: good[0]}
    assert saturation_rows("sas", single, "sds_50")[0].note.startswith("too few seeds"), "one seed shows nothing"
    doubled = {seed: (score(), score(faces=2, back=0.4)) for seed in range(10)}
    assert all(row.note.startswith("held") for row in face_rows("four_views", doubled, list(doubled)))
    still = {seed: (score(faces=2), score(faces=2, back=0.4)) for seed in range(10)}
    assert face_rows("four_views", still, list(still))[0].note.startswith("FAILED")
    strays = {seed: (score(far=60 + seed), score(far=100)) for seed in range(10)}
    assert far_row(strays).note.startswith("held")
    assert far_row({seed: (b, a) for seed, (a, b) in strays.items()}).note.startswith("FAILED")


def test_gains_stand_beside_the_defects_strength() -> None:
    pairs = {seed: (score(), score(error=0.02 + 0.01 * seed)) for seed in range(9)}
    rows = strength_rows("x", pairs, lambda seed: seed / 10, lambda a, b: b.saturation_error - a.saturation_error)
    assert [row.name for row in rows] == ["x_gain_zero", "x_gain_weak", "x_gain_strong"]
    assert [row.n for row in rows] == [1, 4, 4]
    assert rows[0].value == pytest.approx(0) and rows[2].value > rows[1].value > 0


def test_the_interval_is_students() -> None:
    mean, reach = interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and reach == pytest.approx(3.182 * np.std([1, 2, 3, 4], ddof=1) / 2, rel=1e-3)
    assert np.isnan(interval([1.0])[1])


# ---- measures --------------------------------------------------------------------------------------------------------


def test_saturation_is_that_of_the_covered_pixels() -> None:
    pictures, covers = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 8, 8)
    pictures[0, :, :4] = torch.tensor([0.8, 0.4, 0.4])[:, None, None]
    covers[0, :4] = 1.0
    assert saturations(pictures, covers) == pytest.approx(np.full(32, 0.5))
    views = np.concatenate([pictures.permute(0, 2, 3, 1).numpy(), covers[..., None].numpy()], -1)
    assert mean_saturation(views) == pytest.approx(50.0)
    assert mean_saturation(np.zeros((1, 4, 4, 4))) == 0.0


def test_published_measures_are_printed_only_with_their_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    views = np.concatenate([rng.random((5, 48, 48, 3)), np.ones((5, 48, 48, 1))], -1)
    views[:, :, :8, 3] = 0
    photo = rng.integers(0, 256, (60, 50, 3), dtype=np.uint8)
    none = score_views(views, photo, "a golden statue", Shelf(tmp_path / "none"), [])
    assert [row.name for row in none] == ["saturation"]
    said = capsys.readouterr().out
    assert "no clip_identity" in said and "no face_similarity" in said and "no saturation error" in said
    shelf = Shelf(tmp_path / "some", clip_l=write_clip)
    rows = {row.name: row for row in score_views(views, photo, "a golden statue", shelf, [photo])}
    assert set(rows) == {"saturation", "saturation_error", "clip_identity", "clip_style"}
    assert all(np.isfinite(row.value) and abs(row.value) <= 100 for row in rows.values())
    assert rows["clip_identity"].n == 5
    assert "clip_style" not in {row.name for row in score_views(views, photo, "", shelf, [])}


def test_one_frame_holds_the_subject_of_all_views() -> None:
    views = np.zeros((2, 40, 40, 4))
    views[0, 5:15, 30:38] = 1.0
    views[1, 10:20, 28:34] = 1.0
    cut = framed(views)
    assert cut.shape[1] == cut.shape[2] <= 24 and cut[..., 3].sum() == views[..., 3].sum()


def test_a_folder_without_an_avatar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no avatar"):
        quality.main(["--method", "portrait", "--result", str(tmp_path)])
