"""The portable back-end against pictures and gradients that gsplat made on an NVIDIA GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.raster.recordings import FOLDER, SCENES, faults, record, with_backend

RECORDED = sorted(FOLDER.glob("gsplat_*.npz"))


@pytest.mark.parametrize("path", RECORDED or [None], ids=[path.stem for path in RECORDED] or ["nothing recorded"])
def test_portable_draws_what_gsplat_drew(path: Path | None) -> None:
    if path is None:
        pytest.skip("no gsplat recording is there yet: run `python -m tests.gpu.record_gsplat` on a machine with CUDA")
    assert faults(path, with_backend("portable")) == []


def test_the_comparison_can_say_no(tmp_path: Path) -> None:
    """On a recording of the dense reference: equal as it is, and each spoilt part is named."""
    name = next(iter(SCENES))
    path = tmp_path / "reference.npz"
    record(name, with_backend("reference"), path, "reference")
    assert faults(path, with_backend("portable")) == []
    with np.load(path, allow_pickle=False) as file:
        kept = {key: file[key] for key in file.files}
    for spoilt, change in {"rgb": 1e-3, "alpha": 1e-3, "depth": 1e-2, "grad_means": 1.0, "grad_w2c": 1.0}.items():
        other = tmp_path / f"{spoilt}.npz"
        np.savez(other, **kept | {spoilt: kept[spoilt] + change * np.abs(kept[spoilt]).mean()})
        found = faults(other, with_backend("portable"))
        assert len(found) == 1 and found[0].startswith(f"{spoilt}:"), found
