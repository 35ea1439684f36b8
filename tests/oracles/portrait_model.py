"""Diffusion models of which everything is known: what they have seen are the pictures of a bank of heads.

The density is a kernel estimate over the bank's latents, sum_i w_i N(z_i, floor^2 I + spread^2 S) with S the bank's own
covariance in its strongest directions, so that the best prediction of the noise has a closed form. Two
things that guidance fights are in it, with strengths that start at zero:

- the guidance scale itself: at large noise the wanted and the unwanted mean lie far apart, in colour most of all, and
  what is 50 times that far is in no picture (a test has the figures); a scale of 1 has none of it.
- `face_bias`: that share of the pictures of any side shows the front. What a text says about the side cannot undo it,
  and a face grows on the back of the head.

`Portraits` is conditioned as Stable Diffusion with a face adapter and one control network is: text (style and side),
tokens of an identity, and a drawing of where the face's marks shall be.
`FourViews` stands for MVDream: text and four cameras, no identity, unbiased, one head in all four views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backend.diffusion.face_adapter import ImageTokens
from backend.diffusion.interfaces import Conditions, NoiseSchedule, Source
from backend.diffusion.views import ViewTexts
from tests.oracles.portrait_heads import (
    ELEVATIONS_DEG,
    GROUND,
    STYLES,
    Head,
    colours,
    draw_traits,
    focal_px,
    make_head,
    over_ground,
    picture,
    world_to_camera,
)

SIZE_PX, BLOCK_PX = 64, 4
SHAPE = (4, SIZE_PX // BLOCK_PX, SIZE_PX // BLOCK_PX)
AZIMUTHS = 36
"""Pictures around a head, ten degrees apart."""

VIEWS = 4
MARKS = np.array(
    [[-0.15, 0.035, 0.40], [0.15, 0.035, 0.40], [0.0, -0.12, 0.49], [-0.12, -0.285, 0.36], [0.12, -0.285, 0.36]]
)
"""Both eyes, the nose and the corners of the mouth on the mean head: what the control network wants to see drawn."""

FACE_DEG = 10.0
"""How far from the very front the faces are that no text can undo, standard deviation."""

MARK_PX, CONTROL_WIDTH = 2.5, 2.0
"""How wide a drawn mark is, and how far a picture's own marks may be from the drawing at a scale of 1."""

IDENTITY_WIDTH = 0.35
"""How far from the wanted identity a picture may be, per number, at an adapter's scale of 1."""

UNSAID = 1e-12
"""Share of the pictures of each other style under a style's name: a text is obeyed whatever a picture looks like."""

DIRECTIONS = 48
FLOOR = 0.15
CODE = torch.tensor([[0.30, 0.59, 0.11], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
"""Brightness, red against green, and yellow against blue."""
GAINS = (4.2, 7.0, 5.0, 13.0)
"""Bring the four channels to about unit variance; the fourth is the brightness's slope from below to above."""


def sd_schedule(steps: int = 1000) -> NoiseSchedule:
    """Stable Diffusion's own forward process."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    return NoiseSchedule(kept.sqrt(), (1 - kept).sqrt(), "epsilon")


def encode(images: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in 0..1, of any size, to latents [B, 4, 16, 16]; linear."""
    if images.shape[-2:] != (SIZE_PX, SIZE_PX):
        images = functional.interpolate(images, (SIZE_PX, SIZE_PX), mode="bilinear", antialias=True)
    centred = images - images.new_tensor(GROUND)[:, None, None]
    channels = torch.einsum("ck,bkhw->bchw", CODE.to(images), centred)
    means = functional.avg_pool2d(channels, BLOCK_PX)
    rows = functional.avg_pool2d(channels[:, :1], (BLOCK_PX // 2, BLOCK_PX))
    latents = torch.cat([means, rows[:, :, 0::2] - rows[:, :, 1::2]], 1)
    return latents * latents.new_tensor(GAINS)[:, None, None]


def decode(latents: Tensor) -> Tensor:
    """Latents [B, 4, 16, 16] to pictures [B, 3, 64, 64] in 0..1: the smoothest that have these latents, nearly."""
    plain = latents / latents.new_tensor(GAINS)[:, None, None]
    large = functional.interpolate(plain, scale_factor=BLOCK_PX, mode="bicubic", align_corners=False)
    rgb = torch.einsum("kc,bchw->bkhw", torch.linalg.inv(CODE).to(latents), large[:, :3])
    return (rgb + latents.new_tensor(GROUND)[:, None, None]).clamp(0, 1)


@dataclass(frozen=True)
class Bank:
    """All pictures that the models have seen.

    Attributes:
        traits: [K, 10] of the heads.
        styles: Names.
        latents: float32 [K, S, A, E, 4, 16, 16]: head, style, azimuth, elevation.
        basis: float32 [D, R], orthonormal: the strongest directions of all latents.
        variances: float32 [R], along them.
    """

    traits: Tensor
    styles: tuple[str, ...]
    latents: Tensor
    basis: Tensor
    variances: Tensor


def all_views(head: Head, styles: Sequence[str], azimuths: int = AZIMUTHS) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of a head [S, A, E, 3, 64, 64] before the ground, and their covers [A, E, 64, 64]."""
    painted = np.concatenate([colours(head, style) for style in styles], 1)
    pictures, covers = [], []
    for azimuth in np.arange(azimuths) * 360.0 / azimuths:
        for elevation in ELEVATIONS_DEG:
            straight, cover = picture(head, painted, azimuth, elevation, SIZE_PX)
            pictures.append(over_ground(straight.reshape(len(styles), 3, SIZE_PX, SIZE_PX), cover))
            covers.append(cover)
    sides = (azimuths, len(ELEVATIONS_DEG))
    stacked = np.stack(pictures).reshape(*sides, len(styles), 3, SIZE_PX, SIZE_PX)
    return stacked.transpose(2, 0, 1, 3, 4, 5), np.stack(covers).reshape(*sides, SIZE_PX, SIZE_PX)


def make_bank(heads: int, seed: int, styles: Sequence[str] = STYLES) -> Bank:
    """Draw the pictures of `heads` people; takes half a second per person."""
    traits = draw_traits(heads, seed)
    parts = []
    for row in traits:
        pictures, _ = all_views(make_head(row), styles)
        flat = torch.from_numpy(np.ascontiguousarray(pictures)).flatten(0, 2)
        parts.append(encode(flat).unflatten(0, pictures.shape[:3]))
    latents = torch.stack(parts)
    flat = latents.flatten(0, 3).flatten(1)
    centred = (flat - flat.mean(0)).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    order = torch.argsort(values, descending=True)[:DIRECTIONS]
    return Bank(
        torch.from_numpy(traits).float(), tuple(styles), latents, vectors[:, order].float(), values[order].float()
    )


# ---- what is asked for -----------------------------------------------------------------------------------------------


def view_texts(bank: Bank, style: str) -> ViewTexts:
    """The text of a style for four sides: [4, 1, S + 4], the style's share and the side's."""
    rows = torch.zeros(4, 1, len(bank.styles) + 4)
    rows[:, 0, bank.styles.index(style)] = 1.0
    rows[:, 0, len(bank.styles) :] = torch.eye(4)
    return ViewTexts(rows)


def plain_text(bank: Bank, style: str) -> Tensor:
    """The text of a style that says nothing of the side, [1, 1, S + 4]."""
    text = view_texts(bank, style).embeddings[:1].clone()
    text[..., len(bank.styles) :] = 0
    return text


def no_text(bank: Bank) -> Tensor:
    """The empty text, [1, 1, S + 4]."""
    return torch.zeros(1, 1, len(bank.styles) + 4)


def identity_tokens(traits: Tensor) -> ImageTokens:
    """Tokens of a person [10]: the numbers and a one, against zeros for nobody."""
    token = torch.cat([traits.float(), torch.ones(1)])[None, None]
    return ImageTokens(token, torch.zeros_like(token))


def side_shares(azimuths_deg: Tensor) -> Tensor:
    """Shares [4, A] of pictures at azimuths [A] that are called front, side, back and overhead; each sums to 1."""
    off = ((azimuths_deg + 180) % 360 - 180).abs()
    rows = [
        torch.exp(-0.5 * (off / 28) ** 2),
        torch.exp(-0.5 * ((off - 90) / 30) ** 2),
        torch.exp(-0.5 * ((180 - off) / 40) ** 2),
        torch.ones_like(off),
    ]
    shares = torch.stack(rows)
    return shares / shares.sum(1, keepdim=True)


def _fronts(count: int) -> Tensor:
    """Shares [1, A] of the pictures that show a face whatever the text says of the side."""
    off = (torch.arange(count) * 360.0 / count + 180) % 360 - 180
    shares = torch.exp(-0.5 * (off / FACE_DEG) ** 2)
    return (shares / shares.sum())[None]


def draw_marks(w2c: np.ndarray, focal: float, size_px: int = SIZE_PX) -> Tensor:
    """What the control network wants to see of one view: [3, H, W] with the eyes red, the nose green, the mouth blue.

    Args:
        w2c: [4, 4] world to camera, OpenCV axes.
        focal: Focal length, pixels of the picture.
        size_px: Side.
    """
    local = MARKS @ w2c[:3, :3].T + w2c[:3, 3]
    at = local[:, :2] / local[:, 2:] * focal + size_px / 2
    rows, columns = np.mgrid[0:size_px, 0:size_px] + 0.5
    width = MARK_PX * size_px / SIZE_PX
    spots = np.exp(-((columns - at[:, :1, None]) ** 2 + (rows - at[:, 1:, None]) ** 2) / (2 * width**2))
    return torch.from_numpy(np.stack([spots[:2].sum(0), spots[2], spots[3:].sum(0)])).float().clamp(0, 1)


@cache
def _drawn_marks() -> Tensor:
    """Of all pictures in the bank [A E, D]: by azimuth, then elevation."""
    drawn = [
        draw_marks(world_to_camera(azimuth, elevation), focal_px(SIZE_PX)).flatten()
        for azimuth in np.arange(AZIMUTHS) * 360.0 / AZIMUTHS
        for elevation in ELEVATIONS_DEG
    ]
    return torch.stack(drawn)


# ---- the models ------------------------------------------------------------------------------------------------------


class _Kernels:
    """Exact posterior means under one kernel, of any rows of items."""

    def __init__(self, bank: Bank, spread: float) -> None:
        self.schedule = sd_schedule()
        self.basis = bank.basis
        self.widths = FLOOR**2 + spread**2 * bank.variances  # [R], squared, along the basis
        self.coder = (encode, decode)

    def at(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma [B, 1]."""
        return (
            self.schedule.alphas[timesteps.cpu()].to(like)[:, None],
            self.schedule.sigmas[timesteps.cpu()].to(like)[:, None],
        )

    def logs(self, noisy: Tensor, items: Tensor, inside: Tensor, squares: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """log N(noisy; a z_i, C_t) [B, N] up to a constant of each row.

        Args:
            noisy: [B, D].
            items: [N, D], `inside` [N, R] their parts along the basis, `squares` [N] their squared lengths.
            a: [B, 1].
            s: [B, 1].
        """
        base = a**2 * FLOOR**2 + s**2
        extra = 1 / (a**2 * self.widths + s**2) - 1 / base  # [B, R]
        along = noisy @ self.basis
        far = a**2 * squares - 2 * a * (noisy @ items.T)
        far = far / base + a**2 * (extra @ inside.square().T) - 2 * a * ((extra * along) @ inside.T)
        return -0.5 * far

    def clean(self, noisy: Tensor, middle: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """E[z_0 | z_t] [B, D] where the items' posterior mean is `middle` [B, D]: the kernel follows what is seen."""
        rest = noisy - a * middle
        base = a * FLOOR**2 / (a**2 * FLOOR**2 + s**2)
        along = a * self.widths / (a**2 * self.widths + s**2) - base
        return middle + base * rest + ((rest @ self.basis) * along) @ self.basis.T


class _Exact:
    """What both models share: the codec, and the kernels over a bank with their noise."""

    def __init__(self, bank: Bank, spread: float) -> None:
        self.bank = bank
        self._kernels = _Kernels(bank, spread)
        self.calls = 0

    @property
    def schedule(self) -> NoiseSchedule:
        """Stable Diffusion's."""
        return self._kernels.schedule

    def encode(self, images: Tensor) -> Tensor:
        """See `encode`."""
        return encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """See `decode`."""
        return decode(latents)


class Portraits(_Exact):
    """The single-view model: a `Denoiser` with texts, an identity, and the wish to show a face."""

    def __init__(self, bank: Bank, *, spread: float = 0.4, face_bias: float = 0.6) -> None:
        """See the module."""
        super().__init__(bank, spread)
        self.face_bias = face_bias
        self._items = bank.latents.flatten(4).flatten(0, 3)
        self._inside = self._items @ bank.basis
        self._squares = self._items.square().sum(1)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Nobody's pictures."""
        return (Source("bank of heads", "", "CC0-1.0", True),)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """E[eps | z_t], exact, [B, 4, 16, 16]."""
        self.calls += 1
        flat = noisy.detach().float().flatten(1)
        a, s = self._kernels.at(timesteps, flat)
        logs = self._kernels.logs(flat, self._items, self._inside, self._squares, a, s) + self.log_weights(conditions)
        middle = torch.softmax(logs, 1) @ self._items
        clean = self._kernels.clean(flat, middle, a, s)
        return ((flat - a * clean) / s).reshape(noisy.shape).to(noisy)

    def log_weights(self, conditions: Conditions) -> Tensor:
        """Logarithm of the items' weights [B, N] under conditions."""
        heads, styles, azimuths, elevations = self.bank.latents.shape[:4]
        text = conditions.text[:, 0].float()
        style = _style_logs(text[:, :styles])
        sides = side_shares(torch.arange(azimuths) * 360.0 / azimuths)
        said = text[:, styles:]
        share = said / said.sum(1, keepdim=True).clamp_min(1e-9)
        view = torch.where(said.sum(1, keepdim=True) > 1e-6, share @ sides, torch.full((1, azimuths), 1 / azimuths))
        view = ((1 - self.face_bias) * view + self.face_bias * _fronts(azimuths)).clamp_min(1e-12).log()
        person = torch.zeros(len(text), heads)
        if conditions.image_tokens is not None:
            token = conditions.image_tokens[:, 0].float()
            apart = (token[:, None, :-1] - self.bank.traits).square().sum(2)
            scale = torch.as_tensor(conditions.image_scale, dtype=torch.float32).expand(len(text))[:, None]
            person = -token[:, -1:] * scale * apart / (2 * IDENTITY_WIDTH**2)
        logs = person[:, :, None, None] + style[:, None, :, None] + view[:, None, None, :]
        place = _control_logs(conditions, len(text)).unflatten(1, (azimuths, elevations))
        return (logs[..., None] + place[:, None, None]).flatten(1)


class FourViews(_Exact):
    """The multi-view model: groups of four views of one head, by their cameras."""

    def __init__(self, bank: Bank, *, spread: float = 0.4) -> None:
        """See the module."""
        super().__init__(bank, spread)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Nobody's pictures."""
        return (Source("bank of heads from four sides", "", "CC0-1.0", True),)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """E[eps | z_t] of groups of four, exact, [4 G, 4, 16, 16].

        Raises:
            ValueError: If there are no cameras or no whole groups.
        """
        self.calls += 1
        if conditions.cameras is None or len(noisy) % VIEWS:
            raise ValueError(f"{len(noisy)} views; there must be groups of {VIEWS}, with cameras")
        flat = noisy.detach().float().flatten(1)
        a, s = self._kernels.at(timesteps, flat)
        azimuths_deg, elevations_deg = directions(conditions.cameras)
        count = self.bank.latents.shape[2]
        columns = (azimuths_deg / (360.0 / count)).round().long() % count
        levels = (elevations_deg[:, None] - torch.tensor(ELEVATIONS_DEG)).abs().argmin(1)
        items = [
            self.bank.latents[:, :, column, level].flatten(2).flatten(0, 1)
            for column, level in zip(columns.tolist(), levels.tolist(), strict=True)
        ]
        logs = torch.cat(
            [
                self._kernels.logs(
                    flat[n : n + 1], rows, rows @ self._kernels.basis, rows.square().sum(1), a[n : n + 1], s[n : n + 1]
                )
                for n, rows in enumerate(items)
            ]
        )
        together = logs.unflatten(0, (-1, VIEWS)).sum(1)
        style = _style_logs(conditions.text[::VIEWS, 0, : len(self.bank.styles)].float())
        shares = torch.softmax(together + style.repeat(1, self.bank.latents.shape[0]), 1).repeat_interleave(VIEWS, 0)
        middle = torch.stack([share @ rows for share, rows in zip(shares, items, strict=True)])
        clean = self._kernels.clean(flat, middle, a, s)
        return ((flat - a * clean) / s).reshape(noisy.shape).to(noisy)


def _control_logs(conditions: Conditions, count: int) -> Tensor:
    """Logarithm [B, A E] of what a drawing of marks, if there is one, says about the side; without marks nothing."""
    if not conditions.control_images:
        return torch.zeros(count, AZIMUTHS * len(ELEVATIONS_DEG))
    image = conditions.control_images[0].float()
    if image.shape[-1] != SIZE_PX:
        image = functional.interpolate(image, (SIZE_PX, SIZE_PX), mode="area")
    scale = torch.as_tensor(conditions.control_scales[0], dtype=torch.float32).expand(count)[:, None]
    apart = torch.cdist(image.flatten(1), _drawn_marks()).square()
    return -scale * (image.amax((1, 2, 3)) > 0.1).float()[:, None] * apart / (2 * CONTROL_WIDTH**2)


def _style_logs(said: Tensor) -> Tensor:
    """Logarithm [B, S] of the shares of styles under what a text says of them."""
    total = said.sum(1, keepdim=True)
    named = said / total.clamp_min(1e-9) + UNSAID
    return torch.where(total > 1e-6, named.log(), torch.zeros_like(named))


def directions(cameras: Tensor) -> tuple[Tensor, Tensor]:
    """Azimuths in 0..360 and elevations, degrees [B], of MVDream's cameras [B, 4, 4] (Z up, the face looks at +X)."""
    at = cameras[:, :3, 3].double()
    azimuths = torch.rad2deg(torch.atan2(at[:, 1], at[:, 0])) % 360
    return azimuths % 360, torch.rad2deg(torch.asin((at[:, 2] / at.norm(dim=1)).clamp(-1, 1)))


def style_pictures(bank: Bank, style: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """What a perfect sampler makes of a style's text, of anybody: pictures [count, 3, 64, 64], covers [count, 64, 64].

    Mostly fronts, as such pictures are; sides and backs are among them.
    """
    rng = np.random.default_rng([seed, 89])
    pictures, covers = [], []
    for _ in range(count):
        head = make_head(bank.traits[rng.integers(len(bank.traits))].double().numpy())
        azimuth = rng.normal(0, 35) if rng.random() < 0.5 else rng.uniform(0, 360)
        straight, cover = picture(head, colours(head, style), azimuth, float(rng.choice(ELEVATIONS_DEG)), SIZE_PX)
        pictures.append(over_ground(straight, cover))
        covers.append(cover)
    return torch.from_numpy(np.stack(pictures)), torch.from_numpy(np.stack(covers))
