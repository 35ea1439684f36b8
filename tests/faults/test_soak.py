"""A short run of soak.py: no lost job, no orphan, no half-written file, no growing memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.soak import GROWTH_LIMIT_BYTES, soak


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_many_mixed_jobs(tmp_path: Path) -> None:
    report = soak(tmp_path, jobs=16, seed=3)
    assert report.wrong == []
    assert sum(report.ends.values()) == 16 and {"done", "failed"} <= set(report.ends)
    assert report.growth_bytes < GROWTH_LIMIT_BYTES
