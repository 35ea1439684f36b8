"""The backend's hash-pinned requirements: they agree with pyproject.toml, are complete and name no address."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from blender_addon.link.install import pythons_for

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))  # the scripts run as files, not as a package
import make_requirements  # noqa: E402

import environment  # noqa: E402

NAMES = [accelerator.name for accelerator in make_requirements.ACCELERATORS]
SYSTEMS = {"linux": ("posix", "Linux"), "win32": ("nt", "Windows"), "darwin": ("posix", "Darwin")}


def text(name: str) -> str:
    return (ROOT / "blender_addon" / "requirements" / f"{name}.txt").read_text("utf-8")


def entries(name: str, python: str, system: str) -> dict[str, make_requirements.Entry]:
    """What one machine installs."""
    kind, title = SYSTEMS[system]
    values = {
        "python_version": python, "python_full_version": python + ".9", "sys_platform": system, "os_name": kind,
        "platform_system": title,
    }  # fmt: skip
    found = [e for e in make_requirements.parse(text(name)) if not e.marker or Marker(e.marker).evaluate(values)]
    by_name = {canonicalize_name(entry.name): entry for entry in found}
    assert len(by_name) == len(found), "one machine gets two versions of a package"
    return by_name


def machines() -> list[tuple[str, str, str]]:
    return [
        (accelerator.name, python, system)
        for accelerator in make_requirements.ACCELERATORS
        for python in make_requirements.PYTHONS
        for system, _ in accelerator.systems
    ]


@pytest.mark.parametrize(("name", "python", "system"), machines())
def test_every_machine_gets_the_versions_of_pyproject(name: str, python: str, system: str) -> None:
    extra = next(a.extra for a in make_requirements.ACCELERATORS if a.name == name)
    installed = entries(name, python, system)
    for requirement in environment.read_requirements((extra,)):
        wanted, version = requirement.split("==")
        if wanted in make_requirements._SUPERSEDED:
            continue
        have = installed[canonicalize_name(wanted)].version
        assert have.split("+")[0] == version, f"{wanted}: run scripts/make_requirements.py"


@pytest.mark.parametrize("name", NAMES)
def test_every_package_has_a_digest_and_the_file_names_no_address(name: str) -> None:
    found = make_requirements.parse(text(name))
    assert len(found) > 50 and all(entry.hashes for entry in found)
    options = {word.split("=")[0] for word in text(name).split() if word.startswith("-")}
    assert options == {"--hash"}
    assert not re.search(r"://|@|\.(com|org|net|io)\b", text(name))
    assert text(name).count("==") - text(name).count("version ==") - text(name).count("platform ==") == len(found)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_what_a_package_needs_is_in_the_file(name: str) -> None:
    """By the metadata of the packages that are installed here."""
    installed = entries(name, "{}.{}".format(*sys.version_info[:2]), "linux")
    looked = 0
    for package in installed:
        try:
            requires = importlib.metadata.requires(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        looked += 1
        for line in requires:
            requirement = Requirement(line)
            if canonicalize_name(requirement.name) in make_requirements._SUPERSEDED:
                continue
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in installed, f"{package} needs {requirement}"
    assert looked > 30


def test_the_photo_only_section_is_complete_by_itself() -> None:
    for name in NAMES:
        head, _, _ = text(name).partition("# section: models")
        section = {canonicalize_name(entry.name) for entry in make_requirements.parse(head)}
        wanted = {canonicalize_name(r.split("==")[0]) for r in environment.read_requirements(("cpu",))}
        assert wanted <= section and "diffusers" not in section
    sections = re.findall(r"# section: (\w+)", text("cuda"))
    assert sections == ["photo", "models", "gsplat"]


def test_only_the_cuda_build_brings_nvidias_libraries() -> None:
    assert any(name.startswith("nvidia-") for name in entries("cuda", "3.11", "linux"))
    assert not any(name.startswith("nvidia-") for name in entries("cpu", "3.11", "linux"))
    assert entries("cpu", "3.12", "linux")["torch"].version.endswith("+cpu")
    assert entries("cuda", "3.12", "win32")["torch"].version.endswith("+cu130")


def test_nothing_overwrites_a_part_of_something_else() -> None:
    """OpenCV comes under several names that share one folder: the last one that is installed would win."""
    for name, python, system in machines():
        assert [package for package in entries(name, python, system) if package.startswith("opencv")] == [
            "opencv-contrib-python"
        ]


@pytest.mark.parametrize(("name", "python", "system"), machines())
def test_the_installer_takes_a_python_that_torch_has_a_wheel_for(name: str, python: str, system: str) -> None:
    """Of the builds from PyTorch's own index only the wheels that are listed here can be installed."""
    local, digests = make_requirements.TORCH_BUILDS.get((system, name == "cuda"), ("", ("any", "any")))
    covered = make_requirements.PYTHONS if len(digests) == len(make_requirements.PYTHONS) else ("3.12",)
    assert set(pythons_for(name, system)) == set(covered)
    assert entries(name, python, system)["torch"].version.endswith(local)


def test_markers_are_short_and_mean_what_uv_said() -> None:
    long = (
        "(python_full_version < '3.12' and implementation_name == 'cpython' and sys_platform == 'linux') or "
        "(python_full_version < '3.12' and sys_platform == 'win32')"
    )
    given = [make_requirements.Entry("a", "1", long, ("0" * 64,)), make_requirements.Entry("b", "2", "", ("1" * 64,))]
    given += [make_requirements.Entry("c", "3", "sys_platform == 'darwin'", ("2" * 64,))]
    fitted = make_requirements.fit(given, make_requirements.ACCELERATORS[0])
    assert [(entry.name, entry.marker) for entry in fitted] == [("a", "python_version == '3.11'"), ("b", "")]
    assert make_requirements.parse("\n".join(entry.text() for entry in fitted)) == fitted
