"""MVDream's and ImageDream's network written down slowly, from the published description: plain torch, head by head.

Tensors carry the published names (`input_blocks.1.0.in_layers.0.weight` ...). Nothing here is shared with the loaders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Of a network, by the names of the published config.json."""

    model_channels: int = 32
    channel_mult: tuple[int, ...] = (1, 2)
    num_res_blocks: int = 1
    attention_resolutions: tuple[int, ...] = (1,)
    num_head_channels: int = 16
    context_dim: int = 24
    camera_dim: int = 16
    in_channels: int = 4
    out_channels: int = 4
    ip_dim: int = 0
    clip_dim: int = 32
    resampler_heads: int = 1

    def config(self) -> dict[str, object]:
        names = ("model_channels", "num_res_blocks", "num_head_channels", "context_dim", "camera_dim")
        names += ("in_channels", "out_channels", "ip_dim")
        lists = {"channel_mult": list(self.channel_mult), "attention_resolutions": list(self.attention_resolutions)}
        return {**{name: getattr(self, name) for name in names}, **lists, "image_size": 32, "transformer_depth": 1}


def layers(shape: Shape) -> tuple[list[list[tuple[str, int, int]]], list[list[tuple[str, int, int]]], int]:
    """Kinds and channels of the input blocks, the output blocks, and the channels of the middle."""
    first = shape.model_channels
    inputs: list[list[tuple[str, int, int]]] = [[("conv", shape.in_channels, first)]]
    skips, at, scale = [first], first, 1
    for level, factor in enumerate(shape.channel_mult):
        for _ in range(shape.num_res_blocks):
            wide = factor * first
            inputs.append(
                [("res", at, wide)] + ([("attn", wide, wide)] if scale in shape.attention_resolutions else [])
            )
            at = wide
            skips.append(at)
        if level + 1 < len(shape.channel_mult):
            inputs.append([("down", at, at)])
            skips.append(at)
            scale *= 2
    middle, outputs = at, []
    for level in reversed(range(len(shape.channel_mult))):
        wide = shape.channel_mult[level] * first
        for k in range(shape.num_res_blocks + 1):
            block = [("res", at + skips.pop(), wide)]
            at = wide
            if scale in shape.attention_resolutions:
                block.append(("attn", wide, wide))
            if level and k == shape.num_res_blocks:
                block.append(("up", wide, wide))
                scale //= 2
            outputs.append(block)
    return inputs, outputs, middle


def random_network(shape: Shape, seed: int = 0) -> Tensors:
    """All tensors of a network, random."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}

    def add(name: str, *size: int, bias: bool = True, norm: bool = False) -> None:
        fan = math.prod(size[1:]) if len(size) > 1 else 1
        noise = torch.randn(size, generator=generator)
        tensors[f"{name}.weight"] = 1 + 0.1 * noise if norm else noise / math.sqrt(fan)
        if bias:
            tensors[f"{name}.bias"] = 0.1 * torch.randn(size[0], generator=generator)

    def attention(name: str, wide: int, context: int, image: bool) -> None:
        for part, size in (("to_q", wide), ("to_k", context), ("to_v", context)):
            add(f"{name}.{part}", wide, size, bias=False)
        add(f"{name}.to_out.0", wide, wide)
        for part in ("to_k_ip", "to_v_ip") if image else ():
            add(f"{name}.{part}", wide, context, bias=False)

    def block(name: str, kind: str, narrow: int, wide: int) -> None:
        if kind == "res":
            add(f"{name}.in_layers.0", narrow, norm=True)
            add(f"{name}.in_layers.2", wide, narrow, 3, 3)
            add(f"{name}.emb_layers.1", wide, 4 * shape.model_channels)
            add(f"{name}.out_layers.0", wide, norm=True)
            add(f"{name}.out_layers.3", wide, wide, 3, 3)
            if narrow != wide:
                add(f"{name}.skip_connection", wide, narrow, 1, 1)
        elif kind == "attn":
            inner = f"{name}.transformer_blocks.0"
            add(f"{name}.norm", wide, norm=True)
            add(f"{name}.proj_in", wide, wide)
            attention(f"{inner}.attn1", wide, wide, image=False)
            attention(f"{inner}.attn2", wide, shape.context_dim, image=shape.ip_dim > 0)
            add(f"{inner}.ff.net.0.proj", 8 * wide, wide)
            add(f"{inner}.ff.net.2", wide, 4 * wide)
            for k in (1, 2, 3):
                add(f"{inner}.norm{k}", wide, norm=True)
            add(f"{name}.proj_out", wide, wide)
        elif kind == "conv":
            add(name, wide, narrow, 3, 3)
        else:
            add(f"{name}.{'op' if kind == 'down' else 'conv'}", wide, narrow, 3, 3)

    inputs, outputs, middle = layers(shape)
    width = 4 * shape.model_channels
    for name, size in (("time_embed", shape.model_channels), ("camera_embed", shape.camera_dim)):
        add(f"{name}.0", width, size)
        add(f"{name}.2", width, width)
    for group, blocks in (("input_blocks", inputs), ("output_blocks", outputs)):
        for i, parts in enumerate(blocks):
            for k, part in enumerate(parts):
                block(f"{group}.{i}.{k}", *part)
    for k, kind in enumerate(("res", "attn", "res")):
        block(f"middle_block.{k}", kind, middle, middle)
    add("out.0", shape.model_channels, norm=True)
    add("out.2", shape.out_channels, shape.model_channels, 3, 3)
    if shape.ip_dim:
        _add_resampler(tensors, shape, generator, add)
    return tensors


def _add_resampler(tensors: Tensors, shape: Shape, generator: torch.Generator, add) -> None:  # noqa: ANN001
    wide, inner = shape.context_dim, 64 * shape.resampler_heads
    tensors["image_embed.latents"] = torch.randn(1, shape.ip_dim, wide, generator=generator) / math.sqrt(wide)
    add("image_embed.proj_in", wide, shape.clip_dim)
    add("image_embed.proj_out", wide, wide)
    add("image_embed.norm_out", wide, norm=True)
    for k in range(4):
        name = f"image_embed.layers.{k}"
        for norm in ("0.norm1", "0.norm2", "1.0"):
            add(f"{name}.{norm}", wide, norm=True)
        add(f"{name}.0.to_q", inner, wide, bias=False)
        add(f"{name}.0.to_kv", 2 * inner, wide, bias=False)
        add(f"{name}.0.to_out", wide, inner, bias=False)
        add(f"{name}.1.1", 4 * wide, wide, bias=False)
        add(f"{name}.1.3", wide, 4 * wide, bias=False)


class Slow:
    """The forward pass over named tensors."""

    def __init__(self, tensors: Tensors, shape: Shape) -> None:
        self.t = tensors
        self.shape = shape

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.t[f"{name}.weight"].T + self.t.get(f"{name}.bias", torch.zeros(()))

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.t[f"{name}.weight"]
        return F.conv2d(x, weight, self.t[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)

    def group_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        b, c, h, w = x.shape
        g = x.reshape(b, 32, -1)
        mean = g.mean(2, keepdim=True)
        spread = ((g - mean) ** 2).mean(2, keepdim=True)
        n = ((g - mean) / torch.sqrt(spread + eps)).reshape(b, c, h, w)
        return n * self.t[f"{name}.weight"][:, None, None] + self.t[f"{name}.bias"][:, None, None]

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        spread = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(spread + 1e-5) * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, head_size: int) -> Tensor:
        parts = []
        for at in range(0, q.shape[-1], head_size):
            one = slice(at, at + head_size)
            weights = torch.softmax(q[..., one] @ k[..., one].transpose(-1, -2) / math.sqrt(head_size), -1)
            parts.append(weights @ v[..., one])
        return torch.cat(parts, -1)

    def attention(self, name: str, x: Tensor, context: Tensor, tokens: Tensor | None) -> Tensor:
        size = self.shape.num_head_channels
        q = self.linear(f"{name}.to_q", x)
        out = self.attend(q, self.linear(f"{name}.to_k", context), self.linear(f"{name}.to_v", context), size)
        if tokens is not None:
            keys, values = (self.linear(f"{name}.to_{part}_ip", tokens) for part in ("k", "v"))
            out = out + self.attend(q, keys, values, size)
        return self.linear(f"{name}.to_out.0", out)

    def transformer(self, name: str, x: Tensor, context: Tensor, tokens: Tensor | None, frames: int) -> Tensor:
        b, c, h, w = x.shape
        inner = f"{name}.transformer_blocks.0"
        s = self.linear(f"{name}.proj_in", self.group_norm(f"{name}.norm", x, 1e-6).flatten(2).transpose(1, 2))
        for first in range(0, b, frames):  # all places of all views of a group see each other
            one = slice(first, first + frames)
            joined = s[one].reshape(1, -1, c)
            normed = self.layer_norm(f"{inner}.norm1", joined)
            s = torch.cat([s[:first], (joined + self.attention(f"{inner}.attn1", normed, normed, None))
                           .reshape(frames, -1, c), s[first + frames :]])  # fmt: skip
        s = s + self.attention(f"{inner}.attn2", self.layer_norm(f"{inner}.norm2", s), context, tokens)
        value, gate = self.linear(f"{inner}.ff.net.0.proj", self.layer_norm(f"{inner}.norm3", s)).chunk(2, -1)
        s = s + self.linear(f"{inner}.ff.net.2", value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2))))
        return x + self.linear(f"{name}.proj_out", s).transpose(1, 2).reshape(b, c, h, w)

    def block(self, name: str, kind: str, x: Tensor, emb: Tensor, context: Tensor, tokens: Tensor | None,
              frames: int) -> Tensor:  # fmt: skip
        if kind == "conv":
            return self.conv(name, x)
        if kind == "down":
            return self.conv(f"{name}.op", x, stride=2)
        if kind == "up":
            return self.conv(f"{name}.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        if kind == "attn":
            return self.transformer(name, x, context, tokens, frames)
        h = self.conv(f"{name}.in_layers.2", silu(self.group_norm(f"{name}.in_layers.0", x, 1e-5)))
        h = h + self.linear(f"{name}.emb_layers.1", silu(emb))[:, :, None, None]
        h = self.conv(f"{name}.out_layers.3", silu(self.group_norm(f"{name}.out_layers.0", h, 1e-5)))
        return h + (self.conv(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in self.t else x)

    def resample(self, features: Tensor) -> Tensor:
        x = self.linear("image_embed.proj_in", features)
        latents = self.t["image_embed.latents"].repeat(len(x), 1, 1)
        for k in range(4):
            name = f"image_embed.layers.{k}"
            own = self.layer_norm(f"{name}.0.norm2", latents)
            q = self.linear(f"{name}.0.to_q", own)
            seen = torch.cat([self.layer_norm(f"{name}.0.norm1", x), own], 1)
            key, value = self.linear(f"{name}.0.to_kv", seen).chunk(2, -1)
            latents = latents + self.linear(f"{name}.0.to_out", self.attend(q, key, value, 64))
            h = self.linear(f"{name}.1.1", self.layer_norm(f"{name}.1.0", latents))
            latents = latents + self.linear(f"{name}.1.3", h * 0.5 * (1 + torch.erf(h / math.sqrt(2))))
        return self.layer_norm("image_embed.norm_out", self.linear("image_embed.proj_out", latents))

    def __call__(
        self, x: Tensor, times: Tensor, context: Tensor, camera: Tensor, frames: int,
        features: Tensor | None = None, picture: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Of `frames` views per group; with a reference the last frame of each is its latents `picture` [G, ...]."""
        half = self.shape.model_channels // 2
        angles = times[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
        wave = torch.cat([angles.cos(), angles.sin()], 1)
        emb = self.linear("time_embed.2", silu(self.linear("time_embed.0", wave)))
        emb = emb + self.linear("camera_embed.2", silu(self.linear("camera_embed.0", camera)))
        tokens = None if features is None else self.resample(features)
        if picture is not None:
            x = x.clone()
            x[frames - 1 :: frames] = picture
        inputs, outputs, _ = layers(self.shape)
        skips = []
        for i, parts in enumerate(inputs):
            for k, (kind, _, _) in enumerate(parts):
                x = self.block(f"input_blocks.{i}.{k}", kind, x, emb, context, tokens, frames)
            skips.append(x)
        for k, kind in enumerate(("res", "attn", "res")):
            x = self.block(f"middle_block.{k}", kind, x, emb, context, tokens, frames)
        for i, parts in enumerate(outputs):
            x = torch.cat([x, skips.pop()], 1)
            for k, (kind, _, _) in enumerate(parts):
                x = self.block(f"output_blocks.{i}.{k}", kind, x, emb, context, tokens, frames)
        return self.conv("out.2", silu(self.group_norm("out.0", x, 1e-5)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))
