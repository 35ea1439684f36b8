"""Networks of published size: as many parameters as published, and inputs that fit them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backend.diffusion import full_size
from backend.errors import UserError

PUBLISHED_MILLIONS = {
    "svd": 1525,
    "sv3d-u": 1524,
    "sv3d-p": 1525,
    "wan-animate": 17275,
    "wan-vace": 2154,
    "flux2-klein": 3876,
}


@pytest.mark.parametrize("name", full_size.full_size_names())
def test_every_network_has_its_published_size(name: str) -> None:
    built = full_size.build_full_size(name)
    assert round(built.parameters / 1e6) == PUBLISHED_MILLIONS[name]
    assert all(tensor.is_meta for tensor in (*built.model.parameters(), *built.model.buffers()))


def test_a_step_can_be_counted_without_a_device() -> None:
    built = full_size.build_full_size("flux2-klein")
    assert built.step().shape == (1, 2 * 4096, 128)
    # Every token meets nearly every weight once, in a product and a sum; attention between tokens comes on top.
    linear = 2 * built.parameters * (2 * 4096 + 512)
    assert 0.9 * linear < built.operations() < 2 * linear


def test_weights_are_made_where_they_are_used() -> None:
    from accelerate import init_empty_weights

    class Tiny(nn.Module):
        _keep_in_fp32_modules = ("norm",)

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)
            self.register_buffer("table", torch.arange(3.0), persistent=False)

    with init_empty_weights():
        tiny = Tiny()
    full_size._fill(tiny, "cpu", torch.bfloat16)
    assert tiny.layer.weight.dtype == torch.bfloat16 and tiny.norm.weight.dtype == torch.float32
    assert tiny.layer.weight.abs().sum() > 0 and tiny.table.tolist() == [0, 1, 2]


def test_an_unknown_name_is_said() -> None:
    with pytest.raises(UserError, match="flux2-klein"):
        full_size.build_full_size("flux9")
