"""The layers: who may import whom, read from the sources and tried in processes of their own."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "scipy", "cv2", "PIL", "numba", "mediapipe", "diffusers", "transformers", "gsplat", "smplx")
HEAVY += ("zstandard",)
FORBIDDEN = {
    "blender_addon": ("backend", *HEAVY),
    "backend": ("bpy", "bmesh", "mathutils", "gpu", "bl_ext"),
    # smplx: its code is for non-commercial use, so only tests and a user's own SMPL-X file may meet it.
    "scripts": ("smplx",),
}
# methods -> perception, human, splats, diffusion -> raster -> shared
MIDDLE = ("perception", "human", "splats", "diffusion")
UPPER = (
    "methods",
    "pipeline",
    "jobs",
    "generate",
    "serve",
    "serve_job",
    "render",
    "preview",
    "doctor",
    "models",
    "__main__",
)
BELOW = {"raster": (*MIDDLE, *UPPER), **{name: UPPER for name in MIDDLE}}
MAY_KNOW_METHODS = ("methods", "pipeline", "generate", "__main__")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of everything a file imports, relative imports resolved, also inside functions."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


def is_under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_file_imports_what_its_side_must_not_know(folder: str) -> None:
    files = sources(folder)
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in imports(path)
        if any(is_under(name, other) for other in FORBIDDEN[folder])
        and not (is_under(name, "smplx") and folder == "backend")
    ]
    assert wrong == []


def test_imports_inside_the_backend_go_down_only() -> None:
    wrong = []
    for path in sources("backend"):
        part = path.relative_to(ROOT / "backend").parts[0].removesuffix(".py")
        for name in imports(path):
            if any(is_under(name, f"backend.{other}") for other in BELOW.get(part, ())):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
            if is_under(name, "backend.methods") and part not in MAY_KNOW_METHODS:
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []


def test_the_add_on_uses_relative_imports_only() -> None:
    """An installed extension has another package name than a checkout."""
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources("blender_addon")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if (isinstance(node, ast.Import) or node.level == 0) and is_under(name, "blender_addon")
    ]
    assert wrong == []


def test_the_oracles_import_nothing_that_they_judge() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources("tests/oracles")
        for name in imports(path)
        if any(is_under(name, f"backend.{part}") for part in ("methods", "splats", "human", "raster"))
    ]
    assert wrong == []


BLOCK = """
import importlib, importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        top = name.split(".")[0]
        if {condition}:
            raise ImportError(name + " is blocked")
        return None

sys.meta_path.insert(0, Block())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def import_blocked(condition: str, names: list[str]) -> subprocess.CompletedProcess[str]:
    code = BLOCK.format(condition=condition)
    return subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, check=False)


def modules(folder: str) -> list[str]:
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources(folder))
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def test_the_contract_needs_the_standard_library_and_numpy_only() -> None:
    allowed = "top not in sys.stdlib_module_names and top not in ('numpy', 'blender_addon')"
    names = modules("blender_addon/shared")
    assert "blender_addon.shared.gaussians" in names
    done = import_blocked(allowed, names)
    assert done.returncode == 0, done.stderr


def test_the_block_blocks() -> None:
    done = import_blocked("top == 'numpy'", ["blender_addon.shared.gaussians"])
    assert done.returncode != 0 and "numpy is blocked" in done.stderr


def test_the_whole_backend_imports_without_bpy() -> None:
    done = import_blocked(f"top in {FORBIDDEN['backend']}", modules("backend"))
    assert done.returncode == 0, done.stderr


def test_the_add_on_imports_without_bpy_until_it_is_registered() -> None:
    done = import_blocked("top in ('bpy', 'torch', 'backend')", ["blender_addon"])
    assert done.returncode == 0, done.stderr


def test_the_add_on_imports_in_blender_without_the_backends_packages() -> None:
    pytest.importorskip("bpy")
    code = "import bpy\n" + BLOCK.format(condition=f"top in {FORBIDDEN['blender_addon']}")
    names = modules("blender_addon")
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_and_functions_stay_small() -> None:
    """At most 600 lines a file and 120 a function, so that each can be read."""
    wrong = []
    for path in sources("backend", "blender_addon", "scripts", "tests"):
        text = path.read_text("utf-8")
        if text.count("\n") > 600:
            wrong.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 120:
                    wrong.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert wrong == []


MAY_READ_OLD_TENSORS = Path("scripts/default_body_source.py")  # once, on a developer's machine


def is_weights_only(call: ast.Call, where: Path) -> bool:
    """The one exception: the maker of the default body reads tensors and nothing else, to write numpy arrays."""
    texts = [f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in call.keywords]
    return where == MAY_READ_OLD_TENSORS and "weights_only=True" in texts


def test_nothing_is_ever_unpickled() -> None:
    wrong = []
    for path in sources("backend", "blender_addon", "scripts"):
        where = path.relative_to(ROOT)
        wrong += [f"{where}: {name}" for name in imports(path) if name.split(".")[0] in ("pickle", "dill", "joblib")]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                wrong.append(f"{where}: allow_pickle={ast.unparse(node.value)}")
            is_load = isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
            if is_load and not is_weights_only(node, where):
                wrong.append(f"{where}: torch.load")
    assert wrong == []
