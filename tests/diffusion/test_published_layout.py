"""What the registry fetches is what the loaders need: the tiny models hold exactly the listed files, and load."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from backend.context import Context
from backend.diffusion import registry
from backend.diffusion.multiview import embed_reference, load_multi_view
from backend.diffusion.placement import Placement
from backend.diffusion.stable_diffusion import (
    CONTROL_FOLDERS,
    embed_face,
    embed_prompts,
    load_stable_diffusion,
    read_identity_adapter,
    read_plus_face,
)
from tests.diffusion.tiny import TinyFactory

CPU, QUIET = Placement(), Context.quiet()
FETCHED = ("sd15", "sd15-inpaint", *CONTROL_FOLDERS, "ip-adapter-plus-face", "mvdream", "imagedream")


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    torch.set_num_threads(1)
    return TinyFactory(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("model_id", FETCHED)
def test_the_tiny_models_hold_the_listed_files(factory: TinyFactory, model_id: str) -> None:
    folder = factory.folder(model_id)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    listed = {file.path for file in registry.row(model_id).files}
    assert {path for path in present if not any(fnmatch(path, pattern) for pattern in listed)} == set()
    assert {pattern for pattern in listed if not any(fnmatch(path, pattern) for path in present)} == set()


def test_all_of_them_load(factory: TinyFactory, tmp_path: Path) -> None:
    image = torch.rand(3, 40, 40)
    faces = read_plus_face(factory, QUIET)
    everything = load_stable_diffusion(factory, CPU, QUIET, controls=tuple(CONTROL_FOLDERS), adapter=faces)
    assert len(everything.controls) == 3 and embed_prompts(factory, ["a"], CPU, QUIET).shape == (1, 77, 32)
    assert embed_face(factory, faces, image, CPU, QUIET).positive.shape == (1, 16, 32)
    assert read_identity_adapter(factory, QUIET).kind == "faceid"
    inpainting = load_stable_diffusion(factory, CPU, QUIET, controls=(), base="sd15-inpaint")
    assert inpainting.unet.config.in_channels == 9
    assert not load_multi_view(factory, CPU, QUIET, converted=tmp_path / "a").reads_image
    own = load_multi_view(factory, CPU, QUIET, model_id="imagedream", converted=tmp_path / "b")
    tokens, latents, _ = embed_reference(factory, image, own, CPU, QUIET, converted=tmp_path / "b")
    assert own.reads_image and tokens.positive.shape[1] == 16 and latents.shape == (1, 4, 32, 32)
