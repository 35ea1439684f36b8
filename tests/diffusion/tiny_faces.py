"""Small ONNX graphs in the file names and with the inputs and outputs of the published face packs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 11, 7
STRIDES, ANCHORS = (8, 16, 32), 2

FACE = np.array([[-1.0, -0.7], [1.0, -0.7], [0.0, 0.0], [-0.7, 1.0], [0.7, 1.0]])
"""Five points of a face around its middle, in strides: eyes, nose, mouth corners."""


def _save(path: Path, nodes: list, inputs: list, outputs: list, weights: dict[str, np.ndarray]) -> None:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_detector(path: Path) -> None:
    """SCRFD's 9 outputs; what is bright is a face, two strides wide in every direction."""
    nodes, outputs, weights = [], [], {}
    for kind, width in (("score", 1), ("box", 4), ("points", 10)):
        for stride in STRIDES:
            name = f"{kind}_{stride}"
            kernel = np.zeros((ANCHORS * width, 3, stride, stride), np.float32)
            bias = np.zeros(ANCHORS * width, np.float32)
            if kind == "score":
                kernel += 8 / (3 * stride * stride)
                bias -= 4
            else:
                bias += np.tile(np.full(4, 2.0) if kind == "box" else FACE.ravel(), ANCHORS).astype(np.float32)
            weights |= {f"{name}_w": kernel, f"{name}_b": bias, f"{name}_s": np.array([-1, width], np.int64)}
            nodes += [
                helper.make_node(
                    "Conv", ["input.1", f"{name}_w", f"{name}_b"], [f"{name}_c"], strides=[stride, stride],
                    kernel_shape=[stride, stride],
                ),
                helper.make_node("Transpose", [f"{name}_c"], [f"{name}_t"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}_t", f"{name}_s"], [f"{name}_r" if kind == "score" else name]),
            ]  # fmt: skip
            if kind == "score":
                nodes.append(helper.make_node("Sigmoid", [f"{name}_r"], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width]))
    image = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, None, None])
    _save(path, nodes, [image], outputs, weights)


def write_square_network(path: Path, side: int, width: int, seed: int) -> None:
    """Mean colours of an 8 by 8 grid, mixed: the recogniser (112, 512) and the others of a pack."""
    grid = 8 if side % 8 == 0 else 4
    cell = side // grid
    mix = np.random.default_rng(seed).standard_normal((width, 3 * grid * grid)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["input.1"], ["pooled"], kernel_shape=[cell, cell], strides=[cell, cell]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "mix"], ["out"], transB=1),
    ]
    image = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [None, 3, side, side])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, width])
    _save(path, nodes, [image], [out], {"mix": mix})


def write_auraface(folder: Path) -> None:
    """Its recogniser; the published repository's other files are not fetched."""
    write_square_network(folder / "glintr100.onnx", 112, 512, 1)


def write_buffalo(folder: Path) -> None:
    """A whole pack of InsightFace, with the models that must stay closed."""
    write_detector(folder / "det_10g.onnx")
    write_square_network(folder / "w600k_r50.onnx", 112, 512, 2)
    write_square_network(folder / "1k3d68.onnx", 192, 3309, 3)
    write_square_network(folder / "2d106det.onnx", 192, 212, 4)
    write_square_network(folder / "genderage.onnx", 96, 3, 5)
