"""Files of the old kind become safetensors in a process of their own, or are refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backend.diffusion.face_adapter import read_adapter
from backend.diffusion.old_weights import convert_old, main
from backend.errors import UserError
from tests.diffusion.tiny import TinyFactory


def nested(file: Path) -> dict[str, dict[str, torch.Tensor]]:
    """A FaceID file as it is published: two dictionaries of tensors."""
    parts: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(file).items():
        group, _, rest = name.partition(".")
        parts[group][rest] = tensor
    return parts


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("evil-was-here",)


def test_a_users_face_adapter_is_converted_and_read(tmp_path: Path) -> None:
    published = TinyFactory(tmp_path / "models").folder("ip-adapter-faceid") / "ip-adapter-faceid_sd15.safetensors"
    old, new = tmp_path / "ip-adapter-faceid_sd15.bin", tmp_path / "ip-adapter-faceid_sd15.safetensors"
    torch.save(nested(published), old)
    convert_old(old, new)
    expected = load_file(published)
    converted = load_file(new)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in expected.items())
    assert read_adapter(new).kind == "faceid" and not list(tmp_path.glob("*.part"))


def test_code_in_a_file_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old, new = tmp_path / "evil.bin", tmp_path / "evil.safetensors"
    torch.save({"a": torch.zeros(1), "b": Evil()}, old)
    with pytest.raises(UserError, match="evil.bin cannot be converted"):
        convert_old(old, new)
    assert not new.exists() and not list(tmp_path.rglob("evil-was-here"))


def test_what_holds_no_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.offline.forbid_connections", lambda: None)  # it cannot be undone in this process
    for name, content in {"list": {"a": [torch.zeros(1)]}, "empty": {}, "number": {"a": 3}}.items():
        torch.save(content, tmp_path / f"{name}.bin")
        with pytest.raises(ValueError, match="tensor"):
            main([str(tmp_path / f"{name}.bin"), str(tmp_path / "out.safetensors")])
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(pickle.UnpicklingError):
        main([str(tmp_path / "plain.bin"), str(tmp_path / "out.safetensors")])
    assert not (tmp_path / "out.safetensors").exists()
