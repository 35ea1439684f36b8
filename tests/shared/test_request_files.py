"""Files that a request names: what is taken, what they are called in a job, and one line for what is not taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from blender_addon.shared import methods
from blender_addon.shared.methods import BodyRequest, parameter
from blender_addon.shared.protocol import check_relative
from blender_addon.shared.request_files import file_parameters, for_job, located, named_files


@dataclass(frozen=True)
class TrialRequest:
    """One file, several of another kind, and a text that is none."""

    words: str = parameter("", "Words", "What is said.")
    look: str = parameter("", "Look", "One picture.", files="picture")
    motions: tuple[str, ...] = parameter((), "Motions", "Several.", maximum=3, files="motion")

    def __post_init__(self) -> None:
        methods._check(self)  # type: ignore[arg-type]


def write(path: Path, content: bytes = b"x") -> str:
    path.write_bytes(content)
    return str(path)


def test_the_parameters_are_found_with_kind_and_number() -> None:
    found = file_parameters(TrialRequest)  # type: ignore[arg-type]
    assert [(item.name, item.several, item.kind.noun) for item in found] == [
        ("look", False, "a picture"),
        ("motions", True, "a motion file"),
    ]
    assert [item.name for item in file_parameters(BodyRequest())][:1] == ["photos"]


def test_a_job_stores_safe_names_and_knows_their_sources(tmp_path: Path) -> None:
    look, walk = write(tmp_path / "Ännas look.PNG"), write(tmp_path / "a,b.bvh")
    odd = write(tmp_path / "run.npz")
    request = TrialRequest(words="a.png", look=look, motions=(walk, odd))
    stored, sources = for_job(request)  # type: ignore[arg-type]
    assert stored == TrialRequest(words="a.png", look="look-0.png", motions=("motions-0.bvh", "motions-1.npz"))
    assert sources == {"look-0.png": Path(look), "motions-0.bvh": Path(walk), "motions-1.npz": Path(odd)}
    assert not any(check_relative(name) for name in sources)
    for name, source in sources.items():
        (tmp_path / name).write_bytes(source.read_bytes())
    again, _ = for_job(located(stored, tmp_path))
    assert again == stored, "what is made again from a job's copies has the same names"
    assert named_files(TrialRequest()) == {} and for_job(BodyRequest()) == (BodyRequest(), {})  # type: ignore[arg-type]


def test_an_odd_ending_is_left_out_of_the_name(tmp_path: Path) -> None:
    stored, _ = for_job(TrialRequest(look=write(tmp_path / "picture.p n;g")))  # type: ignore[arg-type]
    assert stored.look == "look-0"  # type: ignore[attr-defined]


def test_what_cannot_be_taken_is_one_line_with_the_parameter(tmp_path: Path) -> None:
    for request, words in (
        (TrialRequest(look=str(tmp_path / "gone.png")), "Look: .*gone.png cannot be read"),
        (TrialRequest(look=str(tmp_path)), "Look: .* is no file; choose a picture"),
        (TrialRequest(look=write(tmp_path / "empty.png", b"")), "empty.png is empty"),
        (TrialRequest(look="nul\0.png"), "cannot be read"),
        (TrialRequest(motions=(write(tmp_path / "walk.fbx"),)), "Motions: walk.fbx is not a motion file"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            for_job(request)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
