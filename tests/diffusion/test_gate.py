"""The gate: what a loader could be made to run never gets past it, and what is published in good order does."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from backend.diffusion import gate
from backend.diffusion.gate import check_folder, check_safetensors
from backend.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class Canary:
    """What a pickle would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_the_library_writes_passes(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(3, 4),
        "b": torch.zeros(0, 7),
        "c": torch.zeros(5, dtype=torch.bfloat16),
        "d": torch.zeros(2, 2, dtype=torch.float8_e4m3fn),
        "e": torch.tensor(3),
        "f": torch.zeros(3, dtype=torch.bool),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = check_safetensors(tmp_path / "x.safetensors")
    assert {name: found[name].shape for name in found} == {name: tuple(t.shape) for name, t in tensors.items()}
    save_file({}, tmp_path / "none.safetensors")
    assert check_safetensors(tmp_path / "none.safetensors") == {}


FORGED = {
    "empty": (b"", b"", 0),
    "header of 10 GB": ({"a": entry([1], 0, 4)}, bytes(4), 10_000_000_000),
    "header of 2^63": ({"a": entry([1], 0, 4)}, bytes(4), 2**63),
    "no JSON": (b"{not json", b"", None),
    "a list": ([1, 2], b"", None),
    "nested": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b"", None),
    "name twice": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
        None,
    ),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12), None),
    "the same bytes twice": ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8), None),
    "gap": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12), None),
    "too short": ({"a": entry([4], 0, 16)}, bytes(8), None),
    "trailing bytes": ({"a": entry([1], 0, 4)}, bytes(100), None),
    "shape and size differ": ({"a": entry([3], 0, 4)}, bytes(4), None),
    "negative shape": ({"a": entry([-1, -4], 0, 16)}, bytes(16), None),
    "negative offset": ({"a": entry([1], -4, 0)}, bytes(4), None),
    "backwards": ({"a": entry([1], 4, 0)}, bytes(4), None),
    "fractions": ({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, bytes(4), None),
    "true is no size": ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4), None),
    "huge numbers": ({"a": entry([2**62, 2**62], 0, 4)}, bytes(4), None),
    "10 000 digits": (b'{"a":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,4]}}', b"", None),
    "unknown type": ({"a": entry([1], 0, 8, "OBJECT")}, bytes(8), None),
    "further keys": ({"a": {**entry([1], 0, 4), "loader": "os.system"}}, bytes(4), None),
    "metadata no texts": ({"__metadata__": {"a": [1]}}, b"", None),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_file_is_refused(tmp_path: Path, name: str) -> None:
    header, data, length = FORGED[name]
    path = write(tmp_path / "x.safetensors", header, data, length)
    if name == "empty":
        path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        check_safetensors(path)
    assert caught.value.kind == "BAD_MODEL" and "x.safetensors" in caught.value.message
    with pytest.raises(UserError):
        check_folder(tmp_path)


def test_every_cut_of_a_good_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6.0), "b": torch.ones(2, 2)}, tmp_path / "good.safetensors")
    whole = (tmp_path / "good.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(UserError):
            check_safetensors(tmp_path / "cut.safetensors")


def test_what_passes_is_what_the_library_reads(tmp_path: Path) -> None:
    """Mutated good files: each is refused in one line, or the library itself finds nothing wrong with it."""
    generator = random.Random(3)
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 2).half(), "c": torch.zeros(0)}
    save_file(tensors, tmp_path / "good.safetensors", metadata={"format": "pt"})
    good, path, passed = (tmp_path / "good.safetensors").read_bytes(), tmp_path / "x.safetensors", 0
    for _ in range(600):
        mutant = bytearray(good)
        for _ in range(generator.randrange(1, 4)):
            at = generator.randrange(8 + int.from_bytes(good[:8], "little"))
            mutant[at] = generator.choice([generator.randrange(256), *b'0123456789[]{},:"-'])
        path.write_bytes(mutant)
        try:
            check_safetensors(path)
        except UserError:
            continue
        passed += 1
        with safe_open(path, framework="pt") as file:
            assert all(file.get_tensor(name) is not None for name in file.keys())  # noqa: SIM118
    assert 10 < passed < 550


def layout(folder: Path) -> Path:
    """A small model in the published layout."""
    (folder / "unet").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    (folder / "model_index.json").write_text(
        json.dumps({"unet": ["diffusers", "U"], "none": [None, None], "flag": True, "s": ["stable_diffusion", "S"]})
    )
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer" / "spiece.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    (folder / "README.md").write_text("# A model\n")
    (folder / "LICENSE").write_text("free\n")
    for shard in (1, 2):
        save_file({f"w{shard}": torch.ones(2)}, folder / "unet" / f"m-0000{shard}-of-00002.safetensors")
    index = {"weight_map": {f"w{shard}": f"m-0000{shard}-of-00002.safetensors" for shard in (1, 2)}}
    (folder / "unet" / "m.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_the_published_layout_passes(tmp_path: Path) -> None:
    check_folder(layout(tmp_path / "model"))


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Canary(canary))


def torch_zip(canary: Path) -> bytes:
    store = io.BytesIO()
    with zipfile.ZipFile(store, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(canary))
    return store.getvalue()


def tarred(canary: Path) -> bytes:
    store = io.BytesIO()
    with tarfile.open(fileobj=store, mode="w") as archive:
        member = tarfile.TarInfo("pickle")
        member.size = len(pickled(canary))
        archive.addfile(member, io.BytesIO(pickled(canary)))
    return store.getvalue()


def object_array(canary: Path) -> bytes:
    store = io.BytesIO()
    np.save(store, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    return store.getvalue()


PLACES = [
    "pytorch_model.bin", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.bin", "model.pt",
    "model.pth", "sd.ckpt", "weights.pkl", "weights.pickle", "embedding.npy", "arrays.npz", "flax_model.msgpack",
    "tf_model.h5", "model.joblib", "data.tar", "model.zip", "model.nemo", "rust_model.ot", "unet/optimizer.PT",
    "tokenizer/tokenizer.json", "unet/config.json", "tokenizer/merges.txt", "tokenizer/spiece.model",
    "chat_template.jinja", "unet/model.safetensors", "model", "unet/.hidden.bin", "model.onnx",
]  # fmt: skip


@pytest.mark.parametrize("content", [pickled, torch_zip, tarred, object_array])
def test_a_pickle_is_refused_wherever_it_lies(tmp_path: Path, content: Callable[[Path], bytes]) -> None:
    canary = tmp_path / "canary"
    folder = layout(tmp_path / "model")
    for place in PLACES:
        path = folder / place
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(content(canary))
        with pytest.raises(UserError) as caught:
            check_folder(folder)
        assert caught.value.kind == "BAD_MODEL" and path.name in caught.value.message
        path.unlink()
        if before is not None:
            path.write_bytes(before)
    check_folder(folder)
    assert not canary.exists()


def test_the_canaries_sing(tmp_path: Path) -> None:
    """The files above are real: unpickling one does run its code."""
    pickle.loads(pickled(tmp_path / "canary"))
    assert (tmp_path / "canary").is_dir()


def test_code_is_refused(tmp_path: Path) -> None:
    folder = layout(tmp_path / "model")
    for name in ("modeling.py", "unet/mv_unet.py", "kernel.so", "hook.dll", "x.pyc", "run.sh", "a.pyd"):
        (folder / name).write_text("import os")
        with pytest.raises(UserError, match=Path(name).name):
            check_folder(folder)
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("unet/config.json", {"auto_map": {"AutoModel": "modeling.Model"}}),
        ("unet/config.json", {"text": [{"deep": {"auto_map": {"AutoModel": "other/repo--modeling.Model"}}}]}),
        ("tokenizer/tokenizer_config.json", {"trust_remote_code": True}),
        ("model_index.json", {"custom_pipeline": "somebody/pipeline"}),
        ("model_index.json", {"unet": ["mv_unet", "MultiViewUNetModel"]}),
        ("model_index.json", {"unet": ["os", "system"]}),
        ("model_index.json", {"unet": [["os"], "system"]}),
        ("unet/m.safetensors.index.json", {"weight_map": {"w": "../../evil.safetensors"}}),
        ("unet/m.safetensors.index.json", {"weight_map": {"w": "/etc/evil.safetensors"}}),
        ("unet/m.safetensors.index.json", {"weight_map": {"w": "..\\evil.safetensors"}}),
        ("unet/m.safetensors.index.json", {"weight_map": {"w": "pytorch_model.bin"}}),
        ("unet/m.safetensors.index.json", {"weight_map": {"w": "m-00009-of-00009.safetensors"}}),
        ("unet/m.safetensors.index.json", {"weight_map": ["m-00001-of-00002.safetensors"]}),
        ("unet/m.safetensors.index.json", {}),
    ],
)
def test_a_configuration_that_points_to_code_or_elsewhere_is_refused(
    tmp_path: Path, place: str, content: object
) -> None:
    folder = layout(tmp_path / "model")
    (folder / place).write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        check_folder(folder)
    assert Path(place).name in caught.value.message


@pytest.mark.parametrize("text", [b"{", b"[" * 100_000, b'{"a": NaN'])
def test_a_broken_configuration_is_refused(tmp_path: Path, text: bytes) -> None:
    folder = layout(tmp_path / "model")
    (folder / "unet" / "config.json").write_bytes(text)
    with pytest.raises(UserError, match="JSON"):
        check_folder(folder)


def test_links_stay_inside_or_lead_to_the_caches_own_blobs(tmp_path: Path) -> None:
    outside = tmp_path / "secret.json"
    outside.write_text("{}")
    folder = layout(tmp_path / "model")
    (folder / "unet" / "extra.json").symlink_to(outside)
    with pytest.raises(UserError, match="link"):
        check_folder(folder)
    (folder / "unet" / "extra.json").unlink()
    (folder / "more").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(UserError, match="link"):
        check_folder(folder)
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "f").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/f")
    check_folder(snapshot)
    (snapshot / "other.json").symlink_to(outside)
    with pytest.raises(UserError, match="link"):
        check_folder(snapshot)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes in folders")
def test_a_pipe_in_the_folder_does_not_hang(tmp_path: Path) -> None:
    folder = layout(tmp_path / "model")
    os.mkfifo(folder / "unet" / "x.safetensors")
    with pytest.raises(UserError, match="regular"):
        check_folder(folder)


def onnx_graph(location: str, deep: bool = False) -> bytes:
    """A model whose one tensor lies in another file, in the graph itself or in a node's inner graph."""
    pair = b"".join(bytes([n << 3 | 2, len(t)]) + t for n, t in ((1, b"location"), (2, location.encode())))
    tensor = bytes([13 << 3 | 2, len(pair)]) + pair
    graph = bytes([5 << 3 | 2, len(tensor)]) + tensor
    if deep:
        attribute = bytes([6 << 3 | 2, len(graph)]) + graph
        node = bytes([5 << 3 | 2, len(attribute)]) + attribute
        graph = bytes([1 << 3 | 2, len(node)]) + node
    return bytes([1 << 3, 8, 7 << 3 | 2, len(graph)]) + graph


def test_onnx_passes_only_where_it_is_allowed_and_names_files_inside(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(onnx_graph("net.data"))
    with pytest.raises(UserError):
        check_folder(tmp_path)
    check_folder(tmp_path, onnx=True)
    for location in ("../../etc/passwd", "/etc/passwd"):
        for deep in (False, True):
            (tmp_path / "net.onnx").write_bytes(onnx_graph(location, deep))
            with pytest.raises(UserError, match="passwd"):
                check_folder(tmp_path, onnx=True)


@pytest.mark.parametrize(
    "content", [b"", b"\x3a\xff\xff\xff\xff\x0f", b"PK\x03\x04" + bytes(30), b"\x80\x04K\x01.", b"\x3a"]
)
def test_what_is_no_onnx_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(UserError):
        check_folder(tmp_path, onnx=True)


def test_a_mutated_graph_ends_in_one_line_or_passes(tmp_path: Path) -> None:
    generator, path = random.Random(4), tmp_path / "net.onnx"
    for _ in range(200):
        mutant = bytearray(onnx_graph("net.data", deep=True))
        mutant[generator.randrange(len(mutant))] = generator.randrange(256)
        path.write_bytes(mutant[: generator.randrange(1, len(mutant) + 1)])
        with contextlib.suppress(UserError):
            check_folder(tmp_path, onnx=True)


def test_the_libraries_are_imported_with_their_switches_set() -> None:
    """In a process of its own: no network, no remote code, and no token left in the environment."""
    code = """
import os
from backend.diffusion import gate
diffusers = gate.import_diffusers()
from huggingface_hub import constants
from diffusers.utils import constants as own
assert constants.HF_HUB_OFFLINE and constants.HF_HUB_DISABLE_TELEMETRY
assert own.DIFFUSERS_DISABLE_REMOTE_CODE
assert not [name for name in os.environ if name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
from huggingface_hub import get_token
assert get_token() is None
"""
    environment = {**os.environ, "HF_TOKEN": "hf_secret", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_library_that_was_imported_before_is_noticed() -> None:
    code = "import huggingface_hub.constants\nfrom backend.diffusion import gate\ngate.quiet_imports()"
    environment = {name: value for name, value in os.environ.items() if name not in gate.SWITCHES}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "imported before" in done.stderr
