"""The published forward pass of SVD's and SV3D's network, in plain torch and the published file's own names.

Written from the description of Stability-AI/generative-models (VideoUNet), slowly and without diffusers. Weights come
into being by seed when they are first asked for, so that one pass also writes the published file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Weights:
    """Random numbers by name; the same for the same seed, whatever the order of asking."""

    seed: int = 0
    made: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, *shape: int) -> Tensor:
        if name not in self.made:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + sum(map(ord, name)) * 7919 + len(name))
            fan = max(math.prod(shape[1:]), 1)
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            scale = 0.3 if len(shape) == 1 else 1.0 / math.sqrt(fan)
            offset = 1.0 if name.endswith(".weight") and len(shape) == 1 else 0.0  # a norm's gain
            self.made[name] = (values * scale + offset).float()
        assert self.made[name].shape == shape, name
        return self.made[name].double()


@dataclass(frozen=True)
class Shape:
    """Of the network; published: 320, (1, 2, 4, 4), 2, 64, 1024, 1280."""

    channels: int = 64
    multiples: tuple[int, ...] = (1, 2)
    blocks: int = 1
    head: int = 64
    context: int = 32
    extra: int = 160
    attends: tuple[bool, ...] = (True, False)


class SlowVideoUNet:
    """`__call__` is the network; float64 inside."""

    def __init__(self, shape: Shape, weights: Weights) -> None:
        self.s, self.w = shape, weights

    def __call__(self, x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor, frames: int) -> Tensor:
        """x [BF, 8, h, w]; c_noise [BF]; context [BF, 1, C]; vector [BF, extra]; result [BF, 4, h, w]."""
        s, x, context = self.s, x.double(), context.double()
        emb = self.mlp("time_embed.0", "time_embed.2", timestep_embedding(c_noise.double(), s.channels), 4 * s.channels)
        emb = emb + self.mlp("label_emb.0.0", "label_emb.0.2", vector.double(), 4 * s.channels)
        self.frames, self.emb, self.context = frames, emb, context
        h = self.conv2d("input_blocks.0.0", x, s.channels)
        skips, index, channels = [h], 1, s.channels
        for level, multiple in enumerate(s.multiples):
            for _ in range(s.blocks):
                channels = multiple * s.channels
                h = self.res(f"input_blocks.{index}.0", h, channels)
                if s.attends[level]:
                    h = self.transformer(f"input_blocks.{index}.1", h)
                skips.append(h)
                index += 1
            if level != len(s.multiples) - 1:
                h = self.conv2d(f"input_blocks.{index}.0.op", h, channels, stride=2)
                skips.append(h)
                index += 1
        h = self.res("middle_block.0", h, channels)
        h = self.transformer("middle_block.1", h)
        h = self.res("middle_block.2", h, channels)
        index = 0
        for level, multiple in reversed(list(enumerate(s.multiples))):
            for k in range(s.blocks + 1):
                h = self.res(f"output_blocks.{index}.0", torch.cat([h, skips.pop()], 1), multiple * s.channels)
                place = 1
                if s.attends[level]:
                    h = self.transformer(f"output_blocks.{index}.1", h)
                    place = 2
                if level and k == s.blocks:
                    h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
                    h = self.conv2d(f"output_blocks.{index}.{place}.conv", h, multiple * s.channels)
                index += 1
        return self.conv2d("out.2", silu(self.norm("out.0", h, 1e-5)), 4)

    def conv2d(self, name: str, x: Tensor, out: int, size: int = 3, stride: int = 1) -> Tensor:
        weight = self.w(f"{name}.weight", out, x.shape[1], size, size)
        return F.conv2d(x, weight, self.w(f"{name}.bias", out), stride, size // 2)

    def linear(self, name: str, x: Tensor, out: int, bias: bool = True) -> Tensor:
        y = x @ self.w(f"{name}.weight", out, x.shape[-1]).T
        return y + self.w(f"{name}.bias", out) if bias else y

    def mlp(self, first: str, second: str, x: Tensor, hidden: int, out: int | None = None) -> Tensor:
        return self.linear(second, silu(self.linear(first, x, hidden)), out or hidden)

    def norm(self, name: str, x: Tensor, eps: float, groups: int = 32) -> Tensor:
        """Group norm over everything behind the channels."""
        n, c = x.shape[:2]
        parts = x.reshape(n, groups, -1)
        mean = parts.mean(-1, keepdim=True)
        variance = ((parts - mean) ** 2).mean(-1, keepdim=True)
        normal = ((parts - mean) / torch.sqrt(variance + eps)).reshape(x.shape)
        shape = (1, c) + (1,) * (x.ndim - 2)
        return normal * self.w(f"{name}.weight", c).reshape(shape) + self.w(f"{name}.bias", c).reshape(shape)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        normal = (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-5)
        return normal * self.w(f"{name}.weight", x.shape[-1]) + self.w(f"{name}.bias", x.shape[-1])

    def blend(self, name: str, space: Tensor, time: Tensor) -> Tensor:
        alpha = torch.sigmoid(self.w(f"{name}.mix_factor", 1))
        return alpha * space + (1 - alpha) * time

    def res(self, name: str, x: Tensor, out: int) -> Tensor:
        h = self.conv2d(f"{name}.in_layers.2", silu(self.norm(f"{name}.in_layers.0", x, 1e-5)), out)
        h = h + self.linear(f"{name}.emb_layers.1", silu(self.emb), out)[:, :, None, None]
        h = self.conv2d(f"{name}.out_layers.3", silu(self.norm(f"{name}.out_layers.0", h, 1e-5)), out)
        space = h + (x if x.shape[1] == out else self.conv2d(f"{name}.skip_connection", x, out, 1))
        video = space.reshape(-1, self.frames, *space.shape[1:]).transpose(1, 2)  # [B, C, F, h, w]
        t = f"{name}.time_stack"
        h = self.conv_time(f"{t}.in_layers.2", silu(self.norm(f"{t}.in_layers.0", video, 1e-5)), out)
        shift = self.linear(f"{t}.emb_layers.1", silu(self.emb), out).reshape(-1, self.frames, out).transpose(1, 2)
        h = h + shift[..., None, None]
        h = self.conv_time(f"{t}.out_layers.3", silu(self.norm(f"{t}.out_layers.0", h, 1e-5)), out)
        mixed = self.blend(f"{name}.time_mixer", video, video + h)
        return mixed.transpose(1, 2).reshape(space.shape)

    def conv_time(self, name: str, x: Tensor, out: int) -> Tensor:
        weight = self.w(f"{name}.weight", out, x.shape[1], 3, 1, 1)
        return F.conv3d(x, weight, self.w(f"{name}.bias", out), padding=(1, 0, 0))

    def attention(self, name: str, x: Tensor, context: Tensor | None = None) -> Tensor:
        other, width = (x if context is None else context), x.shape[-1]
        q, k, v = (
            self.linear(f"{name}.{part}", y, width, bias=False)
            for part, y in (("to_q", x), ("to_k", other), ("to_v", other))
        )
        heads = []
        for begin in range(0, width, self.s.head):
            one = slice(begin, begin + self.s.head)
            scores = q[..., one] @ k[..., one].transpose(-1, -2) / math.sqrt(self.s.head)
            heads.append(torch.softmax(scores, -1) @ v[..., one])
        return self.linear(f"{name}.to_out.0", torch.cat(heads, -1), width)

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        value, gate = self.linear(f"{name}.net.0.proj", x, 8 * x.shape[-1]).chunk(2, -1)
        return self.linear(f"{name}.net.2", value * (gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))), x.shape[-1])

    def transformer(self, name: str, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        h = self.norm(f"{name}.norm", x, 1e-6).reshape(n, c, -1).transpose(1, 2)
        h = self.linear(f"{name}.proj_in", h, c)
        frame = torch.arange(self.frames, dtype=torch.float64).repeat(n // self.frames)
        place = self.mlp(
            f"{name}.time_pos_embed.0", f"{name}.time_pos_embed.2", timestep_embedding(frame, c), 4 * c, c
        )[:, None]
        block = f"{name}.transformer_blocks.0"
        h = h + self.attention(f"{block}.attn1", self.layer_norm(f"{block}.norm1", h))
        h = h + self.attention(f"{block}.attn2", self.layer_norm(f"{block}.norm2", h), self.context)
        h = h + self.feed_forward(f"{block}.ff", self.layer_norm(f"{block}.norm3", h))
        mixed = self.over_time(f"{name}.time_stack.0", h + place)
        h = self.linear(f"{name}.proj_out", self.blend(f"{name}.time_mixer", h, mixed), c)
        return x + h.transpose(1, 2).reshape(x.shape)

    def over_time(self, name: str, x: Tensor) -> Tensor:
        """Every place of the picture by itself, along the frames; it looks at the first frame's context."""
        n, places, c = x.shape
        h = x.reshape(-1, self.frames, places, c).transpose(1, 2).reshape(-1, self.frames, c)
        first = self.context[:: self.frames].repeat_interleave(places, 0)
        h = h + self.feed_forward(f"{name}.ff_in", self.layer_norm(f"{name}.norm_in", h))
        h = h + self.attention(f"{name}.attn1", self.layer_norm(f"{name}.norm1", h))
        h = h + self.attention(f"{name}.attn2", self.layer_norm(f"{name}.norm2", h), first)
        h = h + self.feed_forward(f"{name}.ff", self.layer_norm(f"{name}.norm3", h))
        return h.reshape(-1, places, self.frames, c).transpose(1, 2).reshape(n, places, c)


def timestep_embedding(values: Tensor, size: int) -> Tensor:
    """Cosines first."""
    frequencies = torch.tensor([math.exp(-math.log(10_000) * k / (size // 2)) for k in range(size // 2)]).double()
    angles = values[:, None] * frequencies[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], 1)


def camera_vector(cameras: Tensor, unit: int) -> Tensor:
    """What SV3D's conditioner concatenates: noise level, polar angle, azimuth; [N, 3] to [N, 5 unit]."""
    parts = [timestep_embedding(cameras[:, 0].double(), unit)]
    parts += [timestep_embedding(cameras[:, k].double(), 2 * unit) for k in range(1, cameras.shape[1])]
    return torch.cat(parts, 1)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)
