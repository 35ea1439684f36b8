"""An independent reader of skinned glTF binaries: mesh, morph targets, skin and animations, posed by plain numpy."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

_TYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


class SkinnedGlb:
    """The one skinned mesh of a file."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        magic, version, length = struct.unpack("<4sII", data[:12])
        assert (magic, version, length) == (b"glTF", 2, len(data))
        size = struct.unpack("<I", data[12:16])[0]
        self.tree: dict[str, Any] = json.loads(data[20 : 20 + size])
        self.binary = data[28 + size :]
        self.node = next(k for k, node in enumerate(self.tree["nodes"]) if "skin" in node)
        skin = self.tree["skins"][self.tree["nodes"][self.node]["skin"]]
        mesh = self.tree["meshes"][self.tree["nodes"][self.node]["mesh"]]
        assert len(mesh["primitives"]) == 1
        primitive = mesh["primitives"][0]
        self.positions = self.array(primitive["attributes"]["POSITION"]).astype(np.float64)
        self.triangles = self.array(primitive["indices"]).reshape(-1, 3)
        self.colours = self.array(primitive["attributes"]["COLOR_0"])
        sets = range(sum(name.startswith("JOINTS_") for name in primitive["attributes"]))
        self.joints = np.concatenate([self.array(primitive["attributes"][f"JOINTS_{k}"]) for k in sets], axis=1)
        self.weights = np.concatenate([self.array(primitive["attributes"][f"WEIGHTS_{k}"]) for k in sets], axis=1)
        self.targets = [self.array(target["POSITION"]).astype(np.float64) for target in primitive.get("targets", [])]
        self.target_names: list[str] = mesh["extras"]["targetNames"]
        self.skin_nodes: list[int] = skin["joints"]
        self.inverse_bind = self.array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
        self.material = self.tree["materials"][primitive["material"]]

    def array(self, index: int) -> np.ndarray:
        """An accessor as [N, width] or [N]; normalised integers become 0..1; sparse ones are filled in."""
        accessor = self.tree["accessors"][index]
        dtype, width = np.dtype(_TYPES[accessor["componentType"]]), _WIDTHS[accessor["type"]]
        if "bufferView" in accessor:
            values = self._view(accessor["bufferView"], accessor, dtype, width, accessor["count"])
        else:
            values = np.zeros((accessor["count"], width), dtype)
        if "sparse" in accessor:
            sparse, values = accessor["sparse"], values.copy()
            places = np.dtype(_TYPES[sparse["indices"]["componentType"]])
            rows = self._view(sparse["indices"]["bufferView"], sparse["indices"], places, 1, sparse["count"])
            values[rows[:, 0]] = self._view(
                sparse["values"]["bufferView"], sparse["values"], dtype, width, sparse["count"]
            )
        if accessor.get("normalized"):
            values = values / np.iinfo(dtype).max
        return values if width > 1 else values[:, 0]

    def _view(self, index: int, owner: dict[str, Any], dtype: np.dtype[Any], width: int, count: int) -> np.ndarray:
        view = self.tree["bufferViews"][index]
        assert view.get("byteStride", dtype.itemsize * width) == dtype.itemsize * width
        start = view.get("byteOffset", 0) + owner.get("byteOffset", 0)
        return np.frombuffer(self.binary, dtype, count * width, start).reshape(count, width)

    def animation(self, name: str) -> dict[str, Any]:
        """The animation of that name."""
        return next(a for a in self.tree["animations"] if a["name"] == name)

    def seconds(self, name: str) -> np.ndarray:
        """[F] the longest row of times of an animation."""
        rows = [self.array(sampler["input"]) for sampler in self.animation(name)["samplers"]]
        return max(rows, key=len)

    def posed(self, name: str, seconds: float) -> np.ndarray:
        """Vertices [V, 3] in the file's axes at a time that is a key of the animation."""
        nodes = [dict(node) for node in self.tree["nodes"]]
        morph = np.zeros(len(self.targets))
        for channel in self.animation(name)["channels"]:
            sampler = self.animation(name)["samplers"][channel["sampler"]]
            times, values = self.array(sampler["input"]), self.array(sampler["output"])
            values = values.reshape(len(times), -1)
            row = int(np.abs(times - seconds).argmin())
            path = channel["target"]["path"]
            if path == "weights":
                morph = values[row]
            else:
                nodes[channel["target"]["node"]][path] = values[row]
        world = self._world(nodes)
        moved = self.positions + np.einsum("k,kvi->vi", morph, np.array(self.targets))
        matrices = np.array([world[node] for node in self.skin_nodes]) @ self.inverse_bind
        blend = np.einsum("vj,vjab->vab", self.weights.astype(np.float64), matrices[self.joints])
        return np.einsum("vab,vb->va", blend[:, :3, :3], moved) + blend[:, :3, 3]

    def _world(self, nodes: list[dict[str, Any]]) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}

        def visit(index: int, parent: np.ndarray) -> None:
            found[index] = parent @ _matrix(nodes[index])
            for child in nodes[index].get("children", []):
                visit(child, found[index])

        for root in self.tree["scenes"][self.tree.get("scene", 0)]["nodes"]:
            visit(root, np.eye(4))
        return found


def _matrix(node: dict[str, Any]) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"]).reshape(4, 4).T
    x, y, z, w = np.asarray(node.get("rotation", [0, 0, 0, 1]), np.float64)
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.asarray(node.get("scale", [1, 1, 1]))
    matrix[:3, 3] = node.get("translation", [0, 0, 0])
    return matrix
