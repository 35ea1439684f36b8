"""Models that the user already has, and their conversion: the same tensors in another storage."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.context import Context, QuietSink
from backend.diffusion import convert_weights, gate, int8, registry
from backend.diffusion.adopt import adopt
from backend.diffusion.convert_weights import convert
from backend.diffusion.lock import check, lock_path
from backend.diffusion.model_row import ModelFile, ModelRow
from backend.diffusion.weights import Weights, default_folder, installed_models
from backend.errors import Cancelled, UserError
from tests.diffusion.test_gate import Canary, tarred, torch_zip

SD15 = replace(registry.row("sd15"), files=tuple(ModelFile(file.path) for file in registry.row("sd15").files))
COMMIT = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    return Weights(tmp_path / "models")


def made(pattern: str) -> str:
    """A file that a registry's pattern means."""
    return pattern.replace("/*", "/x") + (".json" if pattern.endswith("*") else "")


def published(folder: Path, row: ModelRow, fp16: bool = True) -> Path:
    """A folder with a row's files, tiny, and what else a download brings along."""
    for number, file in enumerate(row.files):
        name = file.path if fp16 else file.path.replace(".fp16.", ".")
        path = folder / made(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file({"w": torch.full((2, 3), float(number))}, path)
        else:
            path.write_text("{}" if path.suffix == ".json" else "text\n")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (folder / "README.md").write_text("read me")
    return folder


def hub_cache(root: Path, row: ModelRow, commit: str = COMMIT) -> Path:
    """The same as the hub's own cache keeps it: blobs, and links to them."""
    plain = published(root / "plain", row)
    repository = root / "hub" / ("models--" + row.repository.replace("/", "--"))
    for path in plain.rglob("*"):
        if path.is_file():
            blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(path.read_bytes())
            link = repository / "snapshots" / commit / path.relative_to(plain)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return repository


def context(tmp_path: Path) -> Context:
    return Context(tmp_path / "scratch", sink=QuietSink())


def test_a_hub_cache_is_imported_with_its_commit(tmp_path: Path, weights: Weights) -> None:
    repository = hub_cache(tmp_path, SD15)
    for source in (tmp_path / "hub", tmp_path, repository, repository / "snapshots" / COMMIT):
        lock = adopt(SD15, weights, source, context(tmp_path))
        assert (lock.origin, lock.revision) == ("import", COMMIT)
        assert set(lock.files) == {made(file.path) for file in SD15.files}  # and no pickle
        folder = weights.folder("sd15")
        assert not any(path.is_symlink() for path in folder.rglob("*"))
        assert torch.equal(
            load_file(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")["w"],
            load_file(tmp_path / "plain" / "unet" / "diffusion_pytorch_model.fp16.safetensors")["w"],
        )
    assert weights.source("sd15").revision == COMMIT
    assert [(item.row.id, item.storage) for item in installed_models(weights.root)] == [("sd15", "published")]


def test_a_damaged_blob_of_a_cache_is_noticed(tmp_path: Path, weights: Weights) -> None:
    repository = hub_cache(tmp_path, SD15)
    blob = (repository / "snapshots" / COMMIT / "unet" / "diffusion_pytorch_model.fp16.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(UserError, match="another sha256"):
        adopt(SD15, weights, repository, context(tmp_path))
    assert not weights.installed("sd15") and not weights.place("sd15").exists()


def test_another_commit_than_the_registrys_is_refused(tmp_path: Path, weights: Weights) -> None:
    repository = hub_cache(tmp_path, SD15, "f" * 40)
    with pytest.raises(UserError, match="451f4fe16113"):
        adopt(SD15, weights, repository, context(tmp_path))


@pytest.mark.parametrize("fp16", [True, False])
@pytest.mark.parametrize("copy", [True, False])
def test_a_folder_is_imported_also_with_the_32_bit_files(
    tmp_path: Path, weights: Weights, fp16: bool, copy: bool
) -> None:
    source = published(tmp_path / "mine", SD15, fp16)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    lock = adopt(SD15, weights, source, context(tmp_path), copy=copy)
    assert lock.revision == ""
    dot = ".fp16" if fp16 else ""
    installed = weights.folder("sd15") / "unet" / f"diffusion_pytorch_model{dot}.safetensors"
    original = source / "unet" / f"diffusion_pytorch_model{dot}.safetensors"
    assert installed.samefile(original) != copy
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_the_subfolder_of_a_control_network_may_be_named_itself(tmp_path: Path, weights: Weights) -> None:
    row = registry.row("control-mediapipe-face")
    row = replace(row, files=tuple(ModelFile(file.path) for file in row.files))
    source = tmp_path / "mine"
    source.mkdir()
    save_file({"w": torch.ones(2)}, source / "diffusion_pytorch_model.fp16.safetensors")
    (source / "config.json").write_text("{}")
    adopt(row, weights, source, context(tmp_path))
    assert (weights.folder(row.id) / "diffusion_sd15" / "config.json").is_file()


def test_a_hash_that_the_registry_knows_must_be_right(tmp_path: Path, weights: Weights) -> None:
    row = registry.row("sd15")
    with pytest.raises(UserError, match="not the published file"):
        adopt(row, weights, published(tmp_path / "mine", row), context(tmp_path))


def test_what_is_missing_is_named(tmp_path: Path, weights: Weights) -> None:
    source = published(tmp_path / "mine", SD15)
    (source / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match=r"lacks vae/config\.json of sd15"):
        adopt(SD15, weights, source, context(tmp_path))
    with pytest.raises(UserError, match="there is no"):
        adopt(SD15, weights, tmp_path / "nowhere", context(tmp_path))


def test_a_folder_of_something_else_is_not_swallowed(tmp_path: Path, weights: Weights) -> None:
    hub_cache(tmp_path, SD15)
    for row in (registry.row("albedo"), registry.row("clip-l")):
        with pytest.raises(UserError, match="cache of many models"):
            adopt(row, weights, tmp_path / "hub", context(tmp_path))
    documents = tmp_path / "documents"
    documents.mkdir()
    for number in range(501):
        (documents / f"{number}.txt").write_text("mine")
    with pytest.raises(UserError, match="501 files"):
        adopt(registry.row("albedo"), weights, documents, context(tmp_path))


def test_a_single_file_becomes_the_models_only_one(tmp_path: Path, weights: Weights) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "renamed.safetensors")
    for model_id, name in (("sv3d-u", "sv3d_u.safetensors"), ("ip-adapter-faceid", "renamed.safetensors")):
        adopt(registry.row(model_id), weights, tmp_path / "renamed.safetensors", context(tmp_path))
        assert (weights.folder(model_id) / name).is_file()
    with pytest.raises(UserError, match="9 files in folders"):
        adopt(SD15, weights, tmp_path / "renamed.safetensors", context(tmp_path))


def test_no_pickle_is_imported_under_any_name(tmp_path: Path, weights: Weights) -> None:
    canary = tmp_path / "canary"
    row = registry.row("ip-adapter-faceid")
    contents = {"faceid.zip": torch_zip(canary), "faceid.tar": tarred(canary)}  # archives are not even looked into
    contents |= {f"faceid{end}": pickle.dumps(Canary(canary)) for end in (".bin", ".safetensors", ".ckpt", ".tar.gz")}
    for name, content in contents.items():
        source = tmp_path / "mine" / name
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(content)
        for given in (source, source.parent):
            with pytest.raises(UserError):
                adopt(row, weights, given, context(tmp_path))
        source.unlink()
    assert not canary.exists() and not weights.installed(row.id)
    assert not weights.place(row.id).exists() and not list(weights.root.rglob("faceid*"))


def test_a_users_pack_of_onnx_graphs_is_imported(tmp_path: Path, weights: Weights) -> None:
    source = tmp_path / "buffalo_l"
    source.mkdir()
    (source / "det_10g.onnx").write_bytes(b"\x08\x08\x3a\x00")
    row = registry.row("insightface-pack")
    adopt(row, weights, source, context(tmp_path))
    assert (weights.folder(row.id) / "det_10g.onnx").is_file()
    assert not weights.source(row.id).commercial and "non-commercial" in str(weights.source(row.id))


def test_a_link_out_of_the_source_is_not_followed(tmp_path: Path, weights: Weights) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "elsewhere.safetensors")
    source = tmp_path / "mine"
    source.mkdir()
    (source / "a.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(UserError, match="link to somewhere else"):
        adopt(registry.row("lpips-vgg"), weights, source, context(tmp_path))


def test_a_failed_import_leaves_the_older_one_in_place(tmp_path: Path, weights: Weights) -> None:
    adopt(SD15, weights, published(tmp_path / "mine", SD15), context(tmp_path))
    before = {path.name for path in weights.root.iterdir()}
    left = weights.root / ".sd15.new" / "unet"  # by a process that was killed
    left.mkdir(parents=True)
    worse = published(tmp_path / "worse", SD15)
    (worse / "unet" / "config.json").write_text(json.dumps({"auto_map": {"A": "b.C"}}))
    with pytest.raises(UserError, match="auto_map"):
        adopt(SD15, weights, worse, context(tmp_path))
    cancelled = context(tmp_path)
    cancelled.cancel_event.set()
    with pytest.raises(Cancelled):
        adopt(SD15, weights, worse, cancelled)
    assert weights.folder("sd15").is_dir()
    assert {path.name for path in weights.root.iterdir()} == before


# ---- conversion -----------------------------------------------------------------------------------------------------


def wide_model(folder: Path) -> dict[str, torch.Tensor]:
    """A transformer in 32 bits in two shards, as the large models are published, and an encoder."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "blocks.0.attn.to_q.weight": torch.randn(160, 130, generator=generator),
        "blocks.0.attn.to_q.bias": torch.randn(160, generator=generator),
        "blocks.0.zero.weight": torch.zeros(128, 128),
        "patch_embedding.weight": torch.randn(64, 4, 4, 4, 4, generator=generator),
        "condition_embedder.linear.weight": torch.randn(128, 128, generator=generator),
        "scale_shift_table": torch.randn(1, 6, 8, generator=generator),
        "half.weight": torch.randn(128, 129, generator=generator).half(),
        "count": torch.tensor(7),
    }
    (folder / "transformer").mkdir(parents=True)
    (folder / "text_encoder").mkdir()
    names = sorted(tensors)
    places = {name: f"diffusion_pytorch_model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(places.values())):
        save_file({name: tensors[name] for name in names if places[name] == shard}, folder / "transformer" / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "transformer" / "config.json").write_text("{}")
    save_file({"wo.weight": torch.randn(130, 140, generator=generator)}, folder / "text_encoder" / "model.safetensors")
    return tensors


ANY = registry.row("albedo")


def installed_wide(tmp_path: Path, weights: Weights) -> dict[str, torch.Tensor]:
    tensors = wide_model(tmp_path / "mine")
    adopt(ANY, weights, tmp_path / "mine", context(tmp_path))
    return tensors


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


@pytest.mark.parametrize("piece", [1, 1000, convert_weights.PIECE])
def test_bf16_keeps_every_value_to_its_precision(
    tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(convert_weights, "PIECE", piece)
    tensors = installed_wide(tmp_path, weights)
    lock = convert(ANY, weights, "bf16", context(tmp_path))
    folder = weights.folder(ANY.id)
    assert folder == weights.place(ANY.id, "bf16") and lock.storage == "bf16"
    found = stored(folder / "transformer")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        small = tensor.ndim < 2 or tensor.numel() < convert_weights.SMALLEST
        wanted = tensor if small or tensor.dtype != torch.float32 else tensor.bfloat16()
        assert found[name].dtype == wanted.dtype and torch.equal(found[name], wanted), name
    index = json.loads((folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in found.values())
    assert check(folder, lock, thorough=True) == []


def test_int8_is_within_half_a_step_of_every_row(tmp_path: Path, weights: Weights) -> None:
    tensors = installed_wide(tmp_path, weights)
    convert(ANY, weights, "int8", context(tmp_path))
    folder = weights.folder(ANY.id, "int8")
    raw = stored(folder / "transformer")
    eight = {name for name, tensor in raw.items() if tensor.dtype == torch.int8}
    assert eight == {"blocks.0.attn.to_q.weight", "blocks.0.zero.weight", "half.weight"}
    restored = int8.restore(raw, torch.float32)
    assert set(restored) == set(tensors)
    for name in eight:
        wanted = tensors[name].float()
        step = wanted.abs().amax(dim=1, keepdim=True) / 127
        assert ((restored[name] - wanted).abs() <= step / 2 + 1e-6).all()
    assert torch.equal(restored["blocks.0.zero.weight"], torch.zeros(128, 128))
    assert stored(folder / "text_encoder")["wo.weight"].dtype == torch.bfloat16
    assert weights.folder(ANY.id) == weights.place(ANY.id, "published")  # 8 bits only where there is nothing better
    lock_path(weights.place(ANY.id)).unlink()
    assert weights.installed(ANY.id) and weights.folder(ANY.id) == folder


def test_int8_of_a_random_matrix_obeys_its_definition() -> None:
    matrix = torch.randn(50, 70, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 6, 50)[:, None]
    values, scales = int8.quantise(matrix)
    assert values.abs().amax(dim=1).eq(127).all()
    again, same = int8.quantise(int8.dequantise(values, scales, torch.float32))
    assert torch.equal(again, values) and torch.allclose(same, scales)
    with pytest.raises(ValueError, match="belong together"):
        int8.restore({"w": values, "w" + int8.SCALE: scales[:-1]}, torch.float32)
    with pytest.raises(ValueError, match="belong together"):
        int8.restore({"w" + int8.SCALE: scales}, torch.float32)


def test_a_conversion_that_is_cancelled_leaves_nothing(tmp_path: Path, weights: Weights) -> None:
    installed_wide(tmp_path, weights)
    before = sorted(path.name for path in weights.root.iterdir())
    cancelled = context(tmp_path)
    cancelled.cancel_event.set()
    with pytest.raises(Cancelled):
        convert(ANY, weights, "bf16", cancelled)
    assert sorted(path.name for path in weights.root.iterdir()) == before


def test_what_is_small_already_is_not_converted(tmp_path: Path, weights: Weights) -> None:
    (tmp_path / "mine").mkdir()
    save_file({"w": torch.randn(200, 200).half()}, tmp_path / "mine" / "model.safetensors")
    adopt(ANY, weights, tmp_path / "mine", context(tmp_path))
    with pytest.raises(UserError, match="nothing to convert"):
        convert(ANY, weights, "bf16", context(tmp_path))
    with pytest.raises(UserError, match="models import matting"):
        convert(registry.row("matting"), weights, "bf16", context(tmp_path))


# ---- the folder of models -------------------------------------------------------------------------------------------


def test_the_folder_of_models_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder({"EFFIGY_MODELS": "~/here"}, "linux") == tmp_path / "here"
    assert default_folder({}, "linux") == tmp_path / ".local/share/effigy/models"
    assert default_folder({"XDG_DATA_HOME": "/data"}, "linux") == Path("/data/effigy/models")
    assert default_folder({}, "darwin") == tmp_path / "Library/Application Support/effigy/models"
    assert default_folder({"LOCALAPPDATA": "/app"}, "win32") == Path("/app/effigy/models")


def test_a_changed_file_is_read_again_only_when_its_time_changed(tmp_path: Path, weights: Weights) -> None:
    adopt(SD15, weights, published(tmp_path / "mine", SD15), context(tmp_path), copy=True)
    path = weights.folder("sd15") / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    os.utime(path, ns=(1, 1))
    weights.folder("sd15")  # the content is right: the lock learns the new time
    lock = weights.lock("sd15")
    assert lock is not None and lock.files["unet/diffusion_pytorch_model.fp16.safetensors"].modified_ns == 1
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        weights.folder("sd15")
    os.utime(path, ns=(1, 1))
    assert check(path.parents[1], lock) == []  # that is what the quick look cannot see
    assert check(path.parents[1], lock, thorough=True) != []


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"version": 1}', '{"version": 1, "files": {"../x": {}}}', "\x00"])
def test_a_damaged_lock_is_no_lock(tmp_path: Path, weights: Weights, damage: str) -> None:
    adopt(SD15, weights, published(tmp_path / "mine", SD15), context(tmp_path))
    (weights.root / "sd15.lock.json").write_text(damage)
    with pytest.raises(UserError, match="damaged"):
        weights.folder("sd15")


def test_a_missing_model_says_which_file_goes_where_and_how(weights: Weights) -> None:
    with pytest.raises(
        UserError, match=r"model_index\.json and the rest belong into .*sd15.*models fetch sd15"
    ) as caught:
        weights.folder("sd15")
    assert (caught.value.code, caught.value.kind) == (3, "NO_MODEL")
    with pytest.raises(UserError, match="models import insightface-pack FOLDER"):
        weights.folder("insightface-pack")
    with pytest.raises(UserError, match="models convert sd15 --to int8"):
        weights.folder("sd15", "int8")


def test_a_network_stored_in_8_bits_is_loaded_like_any_other(tmp_path: Path, weights: Weights) -> None:
    gate.quiet_imports()
    from diffusers import UNet2DModel

    from backend.diffusion.load import load
    from backend.diffusion.placement import Placement

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    net = UNet2DModel(sample_size=8, block_out_channels=(64, 128), layers_per_block=1, norm_num_groups=8, **blocks)
    net.save_pretrained(tmp_path / "mine" / "unet")
    adopt(ANY, weights, tmp_path / "mine", context(tmp_path))
    convert(ANY, weights, "int8", context(tmp_path))
    folder = weights.folder(ANY.id, "int8")
    assert torch.int8 in {tensor.dtype for tensor in stored(folder / "unet").values()}
    loaded = load(UNet2DModel, folder, "unet", placement=Placement())
    for (name, wanted), found in zip(net.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert (found - wanted).abs().max() <= 0.02 * wanted.abs().max(), name
