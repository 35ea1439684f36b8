"""A style's statistics: right on data that are known, inside the foreground only, made once, read with care."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.context import Context, QuietSink
from backend.diffusion import style_statistics as module
from backend.diffusion.moments import Moments, moments
from backend.diffusion.placement import Placement
from backend.diffusion.style_models import Parts, place_models
from backend.diffusion.style_statistics import (
    between,
    default_cache,
    picture_statistics,
    plain_foreground,
    read_statistics,
    style_statistics,
    write_statistics,
)
from backend.errors import Cancelled, UserError
from tests.oracles.analytic_denoiser import AnalyticDenoiser, gaussian

SHAPE = (4, 4, 4)
DIMENSIONS = 4 * 4 * 4


def known(seed: int = 0) -> tuple[AnalyticDenoiser, Moments]:
    """Pictures whose latents have the same mean and covariance at every place."""
    generator = torch.Generator().manual_seed(seed)
    factor = 0.3 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    mean, covariance = torch.randn(4, generator=generator, dtype=torch.float64), factor @ factor.T + 0.02 * torch.eye(4)
    whole = torch.kron(covariance, torch.eye(16, dtype=torch.float64))
    data = gaussian(mean.repeat_interleave(16), whole)
    wide = gaussian(torch.zeros(DIMENSIONS), torch.eye(DIMENSIONS))
    return AnalyticDenoiser((wide, data), SHAPE, block_px=16), Moments(mean, covariance)


def made(model: AnalyticDenoiser, cache: Path, context: Context | None = None, **changes: Any) -> Moments:
    settings: dict[str, Any] = {"images": 12, "steps": 12, "name": ("a style",), **changes}
    return style_statistics(
        model, model.named(1, 1), model.named(1, 1), SHAPE, context=context or Context.quiet(), cache=cache, **settings
    )


def test_the_pictures_have_the_statistics_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "plain_foreground", lambda pictures: torch.ones_like(pictures[:, :1]))
    model, wanted = known()
    found = made(model, tmp_path, images=30, steps=25)
    spread = wanted.covariance.trace()
    assert (found.mean - wanted.mean).norm() < 0.1 * spread.sqrt()
    assert (found.covariance - wanted.covariance).norm() < 0.25 * wanted.covariance.norm()


def test_a_style_is_made_once_and_everything_that_it_depends_on_counts(tmp_path: Path) -> None:
    model, _ = known()
    first = made(model, tmp_path)
    calls = model.calls
    again = made(model, tmp_path)
    assert model.calls == calls and torch.equal(first.covariance, again.covariance)
    made(model, tmp_path, Context.quiet(seed=1))
    made(model, tmp_path, name=("another",))
    made(model, tmp_path, steps=2)
    assert len(list(tmp_path.glob("*.npz"))) == 4 and not list(tmp_path.glob("*.part"))


def test_it_is_shown_and_can_be_stopped(tmp_path: Path) -> None:
    class Watch(QuietSink):
        pictures = 0
        last = 0.0

        def preview(self, image: np.ndarray) -> None:
            assert image.shape == (64, 64, 3) and image.dtype == np.uint8
            self.pictures += 1

        def progress(self, stage: str, done: float, total: float, note: str) -> None:
            self.last = done / total

    model, _ = known()
    watch = Watch()
    made(model, tmp_path, dataclasses.replace(Context.quiet(), sink=watch), images=3, steps=2)
    assert watch.pictures == 3 and watch.last == 1.0
    stopped = Context.quiet()
    stopped.cancel_event.set()
    with pytest.raises(Cancelled):
        made(model, tmp_path / "other", stopped)
    assert not list((tmp_path / "other").glob("*"))


@pytest.mark.parametrize("damage", ["cut", "text", "pickle", "shape", "nan", "negative"])
def test_what_is_damaged_is_made_anew(tmp_path: Path, damage: str) -> None:
    model, _ = known()
    right = made(model, tmp_path)
    (file,) = tmp_path.glob("*.npz")
    mean, covariance = right.mean.numpy(), right.covariance.numpy()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "text":
        file.write_text("no archive")
    else:
        arrays = {
            "pickle": (np.array([{}], object), covariance),
            "shape": (mean[:3], covariance),
            "nan": (mean * np.nan, covariance),
            "negative": (mean, -covariance),
        }[damage]
        np.savez(file, mean=arrays[0], covariance=arrays[1])
    assert read_statistics(file, 4) is None
    again = made(model, tmp_path)
    assert torch.allclose(again.covariance, right.covariance) and read_statistics(file, 4) is not None


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write_statistics(tmp_path / "file" / "x.npz", known()[1])
    assert read_statistics(tmp_path / "file" / "x.npz", 4) is None


def test_the_foreground_stands_out_from_a_plain_background() -> None:
    picture = torch.full((1, 3, 60, 60), 0.9)
    picture += 0.01 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    picture[..., 15:60, 20:40] = torch.tensor([0.2, 0.5, 0.3])[:, None, None]
    mask = plain_foreground(picture)[0, 0]
    assert mask[20:55, 25:35].min() > 0.99 and mask[:12].max() < 0.05 and mask[:, :15].max() < 0.05
    noise = torch.rand(1, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    ellipse = plain_foreground(noise)[0, 0]
    assert ellipse[30, 30] == 1 and ellipse[0, 0] == 0 and 0.3 < ellipse.mean() < 0.6
    assert plain_foreground(noise, fallback="all").eq(1).all()
    assert plain_foreground(torch.full((1, 3, 20, 20), 0.4), fallback="all").eq(1).all()


def test_a_pictures_own_statistics(tmp_path: Path) -> None:
    model, _ = known()
    picture = np.full((80, 64, 3), 230, np.uint8)
    picture[20:80, 16:48] = (200, 60, 40)
    found = picture_statistics(model, picture, 64, "cpu")
    red = model.encode(torch.tensor([200, 60, 40]).reshape(1, 3, 1, 1).expand(1, 3, 16, 16) / 255)[0, :, 0, 0]
    white = model.encode(torch.full((1, 3, 16, 16), 230 / 255))[0, :, 0, 0]
    assert (found.mean - red).norm() < 0.25 * (white - red).norm()
    for wrong in (np.zeros((4, 80, 3), np.uint8), np.zeros((80, 80), np.uint8), np.zeros((80, 80, 3), np.float32)):
        with pytest.raises(UserError, match="style picture"):
            picture_statistics(model, wrong, 64, "cpu")
    mask = np.zeros((80, 64), np.float32)
    mask[:, :16] = 1.0  # of the background only
    assert (picture_statistics(model, picture, 64, "cpu", mask).mean - white).norm() < 1e-2 * (white - red).norm()
    half = between(Moments(red, torch.eye(4).double()), Moments(white, torch.zeros(4, 4)), 0.5)
    assert torch.allclose(half.mean, 0.5 * (red + white)) and torch.allclose(
        half.covariance, 0.5 * torch.eye(4).double()
    )
    assert moments(torch.zeros(1, 4, 2, 2)).covariance.eq(0).all()


def test_where_it_is_remembered() -> None:
    assert default_cache({"EFFIGY_CACHE": "/a"}, "linux") == Path("/a/styles")
    assert default_cache({"XDG_CACHE_HOME": "/b"}, "linux") == Path("/b/effigy/styles")
    assert default_cache({"LOCALAPPDATA": "/c"}, "win32") == Path("/c/effigy/styles")
    assert default_cache({}, "darwin").parts[-3:] == ("Caches", "effigy", "styles")


def test_models_stay_on_small_cards_and_the_guidance_is_split_there() -> None:
    def placed(gigabytes: float, around: bool = True) -> tuple[Placement, bool]:
        context = dataclasses.replace(Context.quiet(device="cuda"), memory_bytes=int(gigabytes * 1e9))
        return place_models(Parts(around, True, "plus-face"), context)

    large, small, lean, least = (placed(size) for size in (9.0, 7.2, 6.0, 3.0))
    assert large == (Placement("cuda", torch.float16), False)
    assert small == (Placement("cuda", torch.float16), True)
    assert lean == (Placement("cuda", torch.float16, storage="fp8"), True)
    assert least[1] and least[0].offload != "none"
    assert placed(9.0, around=False) == (Placement("cuda", torch.float16), False)
    assert place_models(Parts(True, True, "none"), Context.quiet())[1] is False
