"""From the hub to a loader: the files that a row of the registry names are all that the model's loader needs.

Tiny models in the published layouts lie on the mock hub under their real names and commits, beside pickles and code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.context import Context
from backend.diffusion import licences, registry
from backend.diffusion.download import fetch
from backend.diffusion.edit import Inpaint, Klein
from backend.diffusion.features import Clip, Dino
from backend.diffusion.model_row import ModelFile, ModelRow
from backend.diffusion.multiview import load_multi_view
from backend.diffusion.orbit import SVD
from backend.diffusion.placement import Placement
from backend.diffusion.stable_diffusion import embed_prompts, load_stable_diffusion, read_plus_face
from backend.diffusion.surface import DepthAnything, MarigoldNormals
from backend.diffusion.transport import Transport
from backend.diffusion.video import WanAnimate, WanVACE
from backend.diffusion.weights import Weights
from tests.diffusion import tiny_video, tiny_vision
from tests.diffusion.mock_hub import COMMIT, MockHub, mock_hub
from tests.diffusion.tiny import TinyFactory

CPU, QUIET = Placement(), Context.quiet()
CONTROLS = ("control-mediapipe-face", "control-openpose", "control-depth")
Maker = Callable[[Path], Any]
MAKERS: dict[str, Maker] = {
    "svd": tiny_video.write_svd,
    "wan-animate": tiny_video.write_wan_animate,
    "wan-vace": tiny_video.write_vace,
    "flux2-klein": tiny_video.write_klein,
    "sd15-inpaint": tiny_video.write_inpaint,
    "marigold-normals": tiny_vision.write_marigold,
    "depth-anything": tiny_vision.write_depth_anything,
    "dinov2-small": tiny_vision.write_dino,
    "clip-l": tiny_vision.write_clip,
}
LOADERS: dict[str, Callable[[Weights], Any]] = {
    "svd": lambda weights: SVD(weights.folder("svd"), weights.source("svd"), CPU, QUIET),
    "wan-animate": lambda weights: WanAnimate.of(weights, CPU, QUIET),
    "wan-vace": lambda weights: WanVACE.of(weights, CPU, QUIET),
    "flux2-klein": lambda weights: Klein.of(weights, CPU, QUIET),
    "sd15-inpaint": lambda weights: Inpaint.of(weights, CPU, QUIET),
    "marigold-normals": lambda weights: MarigoldNormals(weights, CPU),
    "depth-anything": lambda weights: DepthAnything(weights, CPU),
    "dinov2-small": lambda weights: Dino(weights, CPU),
    "clip-l": lambda weights: Clip(weights, CPU),
}


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    return TinyFactory(tmp_path_factory.mktemp("published"))


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    return Weights(tmp_path / "models")


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield


def as_fetched(model_id: str) -> ModelRow:
    """The registry's row, without the hashes of the real files."""
    row = registry.row(model_id)
    return replace(row, files=tuple(ModelFile(file.path) for file in row.files))


def on_hub(folder: Path, row: ModelRow) -> dict[str, bytes]:
    """The files of a folder, and what lies beside them in the real repositories."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in [file.path for file in row.files if ".fp16." in file.path]:  # both variants are published
        files.setdefault(name, files.get(name.replace(".fp16.", "."), b""))
    if any(file.path == "model_index.json" for file in row.files):
        files.setdefault("model_index.json", json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}).encode())
    return {
        **files,
        "unet/mv_unet.py": b"import os",
        "unet/diffusion_pytorch_model.bin": b"\x80\x04",
        "README.md": b"#",
    }


def install(weights: Weights, model_id: str, folder: Path) -> None:
    row = as_fetched(model_id)
    licences.accept(weights.root, row, row.licence)
    hub: MockHub
    with mock_hub({row.repository: on_hub(folder, row)}, row.revision or COMMIT) as hub:
        lock = fetch(row, weights, Transport(hub.base, lambda host: None), QUIET)
    assert not [name for name in lock.files if name.endswith((".py", ".bin", ".md"))]


@pytest.mark.parametrize("model_id", MAKERS)
def test_what_is_fetched_is_what_the_loader_needs(
    weights: Weights, no_proxy: None, tmp_path: Path, model_id: str
) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    MAKERS[model_id](folder)
    install(weights, model_id, folder)
    model = LOADERS[model_id](weights)
    (source,) = model.sources
    assert source == weights.source(model_id)
    assert source.revision == (registry.row(model_id).revision or COMMIT)
    weights.folder(model_id)  # loading wrote nothing into it


def test_stable_diffusion_with_everything(weights: Weights, no_proxy: None, factory: TinyFactory) -> None:
    for model_id in ("sd15", *CONTROLS, "ip-adapter-plus-face"):
        install(weights, model_id, factory.folder(model_id))
    adapter = read_plus_face(weights, QUIET)
    model = load_stable_diffusion(weights, CPU, QUIET, controls=CONTROLS, adapter=adapter)
    assert [source.licence for source in model.sources] == ["CreativeML-OpenRAIL-M", *["OpenRAIL"] * 3]
    assert embed_prompts(weights, ["a"], CPU, QUIET).shape[1] == 77


@pytest.mark.parametrize("model_id", ["mvdream", "imagedream"])
def test_multi_view_models_without_their_code(
    weights: Weights, no_proxy: None, factory: TinyFactory, model_id: str
) -> None:
    install(weights, model_id, factory.folder(model_id))
    load_multi_view(weights, CPU, QUIET, model_id=model_id)
    weights.folder(model_id)
