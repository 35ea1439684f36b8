"""The table of full-size networks: what can be known of it without a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from backend.__main__ import main
from backend.bench import as_line
from backend.benches import diffusion as table
from backend.benches.diffusion import NETWORKS, Network, random_network, step_row, teraflops
from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.placement import FOOTPRINTS, Placement
from tests.diffusion.tiny_video import one_thread  # noqa: F401

gate.quiet_imports()
pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = [network.name for network in NETWORKS]


@pytest.mark.parametrize("network", NETWORKS, ids=NAMES)
def test_every_network_has_its_published_size_and_takes_its_inputs(network: Network) -> None:
    """Built and run on the meta device: shapes only, at full size."""
    with torch.device("meta"):
        model = network.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == network.parameters
    # 16 bits a weight: what the choice of placements believes of this part.
    assert network.parameters * 2 <= 1.02 * FOOTPRINTS[network.footprint].largest_bytes
    assert 0.1 < teraflops(network) < 5000


class Small(nn.Module):
    """A layer and a table of positions, as transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.register_buffer("positions", torch.arange(64.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.positions


SMALL = Network("small", "dinov2-small", 64 * 65, Small, lambda device, dtype: {
    "x": table.noise(device, dtype, 8, 64)}, "eight rows")  # fmt: skip


def test_random_weights_are_the_same_every_time_and_finite() -> None:
    one, other = (random_network(SMALL, torch.float32, "cpu") for _ in range(2))
    weights: Any = one.get_parameter("layer.weight")
    assert torch.equal(weights, other.get_parameter("layer.weight")) and 0.01 < weights.abs().max() <= 0.02
    assert one(torch.ones(1, 64)).isfinite().all()


@pytest.mark.parametrize("placement", [Placement(), Placement(storage="fp8"), Placement(offload="sequential")])
def test_a_row_tells_time_memory_and_share(placement: Placement) -> None:
    context = replace(Context.quiet(), memory_bytes=2 * 10**9)
    row = step_row("step_small", SMALL, placement, context, repeats=2, rate=1.0)
    assert row.value and row.value > 0 and row.n == 2
    assert row.against_value == pytest.approx(2 * 8 * 64 * 64 / 1e12 * 1e3)
    assert row.ratio == pytest.approx(row.against_value / row.value)
    assert str(placement) in row.note and "of 2.0 allowed" in row.note and "step_small" in as_line(row)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "diffusion_table"]) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "needs a CUDA device" in said[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_card_of_eight_gigabytes_is_enough_for_sd15() -> None:
    from backend.benches.measuring import Options

    row = table.preset_row(NETWORKS[0], "8gb", Options(1), 100.0)
    assert row.value is not None, row.note
