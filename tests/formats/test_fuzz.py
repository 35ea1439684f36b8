"""Mutated files of every format: read or refused in one line, never anything else. Longer: scripts/fuzz_formats.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.formats import FORMATS
from blender_addon.shared.formats import FormatError
from tests.formats.fuzzing import KINDS, Broken, Mutation, Seed, outcome, seeds

MUTATIONS = st.lists(
    st.builds(
        Mutation,
        st.sampled_from(KINDS),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 40),
        st.integers(0, 2**32 - 1),
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Seed]]:
    """Seeds of each format."""
    found: dict[str, list[Seed]] = {row.name: [] for row in FORMATS}
    for seed in seeds(tmp_path_factory.mktemp("seeds")):
        found[seed.format].append(seed)
    return found


@pytest.mark.parametrize("name", [row.name for row in FORMATS])
@given(data=st.data())
@settings(
    max_examples=600,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_a_mutated_file_is_read_or_refused(
    corpus: dict[str, list[Seed]], tmp_path: Path, name: str, data: st.DataObject
) -> None:
    seed = data.draw(st.sampled_from(corpus[name]))
    way = data.draw(st.sampled_from(seed.ways))
    outcome(tmp_path, seed, way(data.draw(MUTATIONS)), strict=data.draw(st.booleans()))


def test_the_harness_catches_what_no_reader_may_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that break each rule are caught."""
    seed = seeds(tmp_path)[0]

    def raises(path: Path, *, drop_invalid: bool = False) -> None:
        raise KeyError("x")

    def hoards(path: Path, *, drop_invalid: bool = False) -> None:
        bytearray(201_000_000)
        raise FormatError(path, "is damaged")

    def hangs(path: Path, *, drop_invalid: bool = False) -> None:
        while True:
            pass

    monkeypatch.setattr("tests.formats.fuzzing.CPU_LIMIT_S", 0.2)
    for reader, words in ((raises, "KeyError"), (hoards, "took 2"), (hangs, "still at work")):
        monkeypatch.setattr(Seed, "reader", property(lambda seed, reader=reader: reader))
        with pytest.raises(Broken, match=words):
            outcome(tmp_path, seed, b"", strict=True)
