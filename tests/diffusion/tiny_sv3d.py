"""A small SV3D file with the names and the layout of the published one, made of random numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.diffusion.slow_video_unet import Shape, SlowVideoUNet, Weights

HEAD = 64
VISION_HEAD = 16
UNIT = 32


def slow_network(cameras: bool, seed: int = 0) -> SlowVideoUNet:
    """The oracle; its weights are those that `write_sv3d` puts into the file."""
    net = SlowVideoUNet(Shape(extra=5 * UNIT if cameras else UNIT, context=32), Weights(seed))
    x, context = torch.zeros(2, 8, 8, 8), torch.zeros(2, 1, 32)
    net(x, torch.zeros(2), context, torch.zeros(2, net.s.extra), frames=2)
    return net


def write_sv3d(path: Path, cameras: bool, timed: bool, seed: int = 0) -> SlowVideoUNet:
    """Write the file; the network in it is the one that is returned."""
    net = slow_network(cameras, seed)
    tensors = {f"model.diffusion_model.{name}": value for name, value in net.w.made.items()}
    w = Weights(seed + 1)
    for name, shape in autoencoder_shapes((32, 32, 32, 32), 2):
        w(f"conditioner.embedders.1.encoder.{name}", *shape)
    for name, shape in decoder_shapes((32, 32, 32, 32), 2, timed):
        w(f"first_stage_model.decoder.{name}", *shape)
    for name, shape in vision_shapes(32, 2, 56):
        w(f"conditioner.embedders.0.open_clip.model.visual.{name}", *shape)
    # Left over from the text side of OpenCLIP, as in the published file.
    w("conditioner.embedders.0.open_clip.model.logit_scale", 1)
    save_file({name: tensor.contiguous() for name, tensor in (tensors | w.made).items()}, path)
    return net


def autoencoder_shapes(widths: tuple[int, ...], layers: int) -> list[tuple[str, tuple[int, ...]]]:
    """Encoder of the picture, with the convolutions around the latent and the still decoder beside it."""
    rows = [*_conv("encoder.conv_in", 3, widths[0])]
    before = widths[0]
    for level, width in enumerate(widths):
        for k in range(layers):
            rows += _residual(f"encoder.down.{level}.block.{k}", before, width)
            before = width
        if level != len(widths) - 1:
            rows += _conv(f"encoder.down.{level}.downsample.conv", width, width)
    rows += _middle("encoder.mid", before)
    rows += [*_norm("encoder.norm_out", before), *_conv("encoder.conv_out", before, 8)]
    rows += [*_conv("quant_conv", 8, 8, 1), *_conv("post_quant_conv", 4, 4, 1)]
    return rows + [(f"decoder.{name}", shape) for name, shape in decoder_shapes(widths, layers, False)]


def decoder_shapes(widths: tuple[int, ...], layers: int, timed: bool) -> list[tuple[str, tuple[int, ...]]]:
    rows = [*_conv("conv_in", 4, widths[-1]), *_middle("mid", widths[-1], timed)]
    before = widths[-1]
    for level in reversed(range(len(widths))):
        for k in range(layers + 1):
            rows += _residual(f"up.{level}.block.{k}", before, widths[level], timed)
            before = widths[level]
        if level:
            rows += _conv(f"up.{level}.upsample.conv", before, before)
    rows += [*_norm("norm_out", before), *_conv("conv_out", before, 3)]
    if timed:
        rows += [("conv_out.time_mix_conv.weight", (3, 3, 3, 1, 1)), ("conv_out.time_mix_conv.bias", (3,))]
    return rows


def vision_shapes(width: int, layers: int, patch: int) -> list[tuple[str, tuple[int, ...]]]:
    """OpenCLIP's image tower for 224 px."""
    rows: list[tuple[str, tuple[int, ...]]] = [
        ("class_embedding", (width,)),
        ("positional_embedding", ((224 // patch) ** 2 + 1, width)),
        ("proj", (width, 32)),
        ("conv1.weight", (width, 3, patch, patch)),
        *_norm("ln_pre", width),
        *_norm("ln_post", width),
    ]
    for k in range(layers):
        block = f"transformer.resblocks.{k}"
        rows += [*_norm(f"{block}.ln_1", width), *_norm(f"{block}.ln_2", width)]
        rows += [(f"{block}.attn.in_proj_weight", (3 * width, width)), (f"{block}.attn.in_proj_bias", (3 * width,))]
        rows += [*_linear(f"{block}.attn.out_proj", width, width), *_linear(f"{block}.mlp.c_fc", width, 2 * width)]
        rows += _linear(f"{block}.mlp.c_proj", 2 * width, width)
    return rows


def _conv(name: str, before: int, after: int, size: int = 3) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{name}.weight", (after, before, size, size)), (f"{name}.bias", (after,))]


def _linear(name: str, before: int, after: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{name}.weight", (after, before)), (f"{name}.bias", (after,))]


def _norm(name: str, width: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]


def _residual(name: str, before: int, after: int, timed: bool = False) -> list[tuple[str, tuple[int, ...]]]:
    rows = [*_norm(f"{name}.norm1", before), *_conv(f"{name}.conv1", before, after)]
    rows += [*_norm(f"{name}.norm2", after), *_conv(f"{name}.conv2", after, after)]
    if before != after:
        rows += _conv(f"{name}.nin_shortcut", before, after, 1)
    if timed:
        for norm, conv in (("in_layers.0", "in_layers.2"), ("out_layers.0", "out_layers.3")):
            rows += _norm(f"{name}.time_stack.{norm}", after)
            rows += [(f"{name}.time_stack.{conv}.weight", (after, after, 3, 1, 1))]
            rows += [(f"{name}.time_stack.{conv}.bias", (after,))]
        rows += [(f"{name}.mix_factor", (1,))]
    return rows


def _middle(name: str, width: int, timed: bool = False) -> list[tuple[str, tuple[int, ...]]]:
    rows = [*_residual(f"{name}.block_1", width, width, timed), *_norm(f"{name}.attn_1.norm", width)]
    for part in ("q", "k", "v", "proj_out"):
        rows += _conv(f"{name}.attn_1.{part}", width, width, 1)
    return rows + _residual(f"{name}.block_2", width, width, timed)


def random_cameras(count: int, seed: int) -> Tensor:
    """[1, count, 3] noise level, polar angle, azimuth."""
    values = torch.rand(1, count, 3, generator=torch.Generator().manual_seed(seed))
    return values * torch.tensor([1e-3, 3.14, 6.28])
