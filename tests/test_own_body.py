"""A user's own SMPL-X file in a job: which body a request stands for, what is stored of it; and where CUDA fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from backend import jobs
from backend.device import choose_device, explain_cuda
from backend.errors import UserError
from backend.generate import Order, _with_body
from backend.human.face_parts import mouth_splats
from backend.human.model import load_default_body, load_smplx
from backend.perception.photo import read_photo
from blender_addon.shared.methods import BodyRequest, request_to_json
from blender_addon.shared.protocol import Device
from tests.human.test_smplx import smplx_arrays

PHOTO = Path(__file__).parent.parent / "scripts" / "data" / "collins.png"


@pytest.fixture(scope="module")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Effigy's body in SMPL-X's layout."""
    file = tmp_path_factory.mktemp("smplx") / "SMPLX_NEUTRAL.npz"
    np.savez(file, **smplx_arrays(load_default_body()))
    return file


def order(body: str, own: Path | None) -> Order:
    return Order("body", BodyRequest(body=body), PHOTO, Path("out"), own_body=own)  # type: ignore[arg-type]


def test_a_request_is_stored_with_the_body_that_it_stood_for(own_file: Path) -> None:
    assert _with_body(order("auto", own_file)).request.body == "smplx"
    assert _with_body(order("auto", None)).request.body == "effigy"
    assert _with_body(order("smplx", own_file)).own_body == own_file
    assert _with_body(order("effigy", own_file)).own_body is None, "a file that is not used does not count"


def test_a_file_that_is_wanted_and_absent_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--smplx"):
        _with_body(order("smplx", None))
    with pytest.raises(UserError, match="preferences"):
        _with_body(order("auto", tmp_path / "gone.npz"))


def test_another_file_is_another_job(own_file: Path, tmp_path: Path) -> None:
    photo, request = read_photo(PHOTO), request_to_json(BodyRequest(body="smplx"))
    other = tmp_path / "other.npz"
    other.write_bytes(b"another")
    first, second = (jobs.identity("body", request, photo, path) for path in (own_file, other))
    assert first != second and "body_sha256" not in jobs.identity("body", request, photo)


def test_a_body_without_an_inside_of_the_mouth_has_no_gaussians_there(own_file: Path) -> None:
    user = load_smplx(own_file)
    personal = SimpleNamespace(vertices_m=user.template_m)
    assert len(mouth_splats(user, personal)) == 0  # type: ignore[arg-type]


RTX = Device("cuda", "RTX 4090", 24 << 30, 20 << 30, "580.65.06", 1)


@pytest.mark.parametrize(
    ("device", "built", "usable", "capability", "words"),
    [
        (None, "13.0", False, (0, 0), "no NVIDIA device"),
        (RTX, "", False, (0, 0), "accelerator CUDA"),
        (Device("cuda", "RTX 4090", 0, 0, "570.86", 1), "13.0", False, (0, 0), "driver 570.86 is too old"),
        (RTX, "13.0", False, (0, 0), "restart"),
        (RTX, "13.0", True, (6, 1), "not supported"),
        (RTX, "13.0", True, (8, 9), ""),
    ],
)
def test_30_doctor_and_jobs_say_why_cuda_does_not_work(
    device: Device | None, built: str, usable: bool, capability: tuple[int, int], words: str
) -> None:
    """Row 30: no device, removed, a build without CUDA, an old driver, an old device."""
    fault = explain_cuda(device, built, usable, capability, ["sm_75", "sm_80", "sm_90", "compute_120"])
    assert words in fault and bool(fault) == bool(words) and "\n" not in fault


def test_30_a_job_for_cuda_without_it_ends_in_no_device() -> None:
    """Row 30, on machines without CUDA; the processor is what everything else gets."""
    import torch

    assert choose_device("auto") == choose_device("cpu") == "cpu"
    if torch.cuda.is_available():
        assert choose_device("cuda") == "cuda"
        return
    with pytest.raises(UserError) as caught:
        choose_device("cuda")
    assert caught.value.kind == "NO_DEVICE" and caught.value.code == 3 and "Automatic" in caught.value.message
