"""Where uv, Python and packages come from: downloads that go wrong, hostile archives, the user's own settings."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import stat
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from blender_addon.link import accelerator, install_tools
from blender_addon.link.install_progress import PipMeter, UvMeter, explain, lacks_torch
from blender_addon.link.install_tools import (
    InstallCancelled,
    InstallError,
    UvRelease,
    download_uv,
    find_pythons,
    find_uv,
)
from blender_addon.link.package_sources import clean_environment, pip_settings, uv_arguments, uv_settings

PROGRAM = b"#!/bin/sh\necho uv 0.13.0\n" + b"#" * 200_000


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def regular(name: str, content: bytes = PROGRAM) -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


GOOD = tar_of(regular("uv-x/uv"), regular("uv-x/uvx", b"other"))


class Server:
    """One file over HTTP, with the faults of row 34."""

    def __init__(self, content: bytes) -> None:
        self.content, self.fault, self.requests = content, "", list[str]()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def release(self) -> UvRelease:
        name = "uv.tar.gz" if not zipfile.is_zipfile(io.BytesIO(self.content)) else "uv.zip"
        machine = (sys.platform, install_tools.platform.machine().lower())
        digest = hashlib.sha256(self.content).hexdigest()
        return UvRelease("0.13.0", f"http://127.0.0.1:{self.server.server_port}", {machine: (name, digest)})

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range", "")
        self.requests.append(wanted)
        start = int(wanted[6:-1]) if wanted and self.fault != "no range" else 0
        body = b"<html>log in first</html>" if self.fault == "portal" else self.content[start:]
        if self.fault == "404":
            handler.send_error(404)
            return
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if self.fault.startswith("cut"):
            body = body[: len(body) * int(self.fault[3:]) // 100]
        handler.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(GOOD)
    yield made
    made.server.shutdown()
    made.server.server_close()


def fetch(server: Server, tools: Path) -> Path:
    return download_uv(server.release, tools, lambda have, total: None, lambda: False)


def test_uv_is_downloaded_and_starts(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    uv = download_uv(server.release, tmp_path / "tools", lambda *at: seen.append(at), lambda: False)
    assert uv.read_bytes() == PROGRAM and uv.stat().st_mode & stat.S_IXUSR
    assert seen[-1] == (len(GOOD), len(GOOD))
    assert [path.name for path in (tmp_path / "tools").iterdir()] == ["uv"]
    assert find_uv(tmp_path / "tools", {"PATH": "/bin:/usr/bin", "HOME": str(tmp_path)}) == uv


@pytest.mark.parametrize("percent", [10, 50, 99])
def test_34_a_download_that_was_cut_goes_on(server: Server, tmp_path: Path, percent: int) -> None:
    server.fault = f"cut{percent}"
    with pytest.raises(InstallError, match="try again"):
        fetch(server, tmp_path)
    server.fault = ""
    assert fetch(server, tmp_path).read_bytes() == PROGRAM
    assert server.requests[0] == "" and server.requests[1].startswith("bytes=")


def test_34_a_server_that_ignores_the_range_starts_anew(server: Server, tmp_path: Path) -> None:
    server.fault = "cut50"
    with pytest.raises(InstallError):
        fetch(server, tmp_path)
    server.fault = "no range"
    assert fetch(server, tmp_path).read_bytes() == PROGRAM


@pytest.mark.parametrize("fault", ["404", "portal"])
def test_34_anything_else_is_refused_and_leaves_no_program(server: Server, tmp_path: Path, fault: str) -> None:
    server.fault = fault
    with pytest.raises(InstallError) as caught:
        fetch(server, tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "uv").exists()
    server.fault = ""
    assert fetch(server, tmp_path).read_bytes() == PROGRAM


def test_34_another_digest_is_refused(server: Server, tmp_path: Path) -> None:
    release = server.release
    server.content = tar_of(regular("uv-x/uv", b"evil"))
    with pytest.raises(InstallError, match="sha256 differs"):
        download_uv(release, tmp_path, lambda have, total: None, lambda: False)
    assert not list(tmp_path.iterdir())


def test_34_a_redirection_never_leaves_encryption() -> None:
    redirect = install_tools._NoDowngrade()
    request = install_tools.urllib.request.Request("https://one.example/uv")
    with pytest.raises(OSError, match="without encryption"):
        redirect.redirect_request(request, None, 302, "", {}, "http://two.example/uv")


def test_a_download_can_be_cancelled(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InstallCancelled):
        download_uv(server.release, tmp_path, lambda have, total: None, lambda: True)
    assert not (tmp_path / "uv").exists()


def test_no_address_answers(tmp_path: Path) -> None:
    machine = (sys.platform, install_tools.platform.machine().lower())
    release = UvRelease("1", "http://127.0.0.1:9", {machine: ("uv.tar.gz", "0" * 64)})
    with pytest.raises(InstallError, match="cannot be downloaded"):
        download_uv(release, tmp_path, lambda have, total: None, lambda: False)


def zip_of(*names: str, mode: int = 0o100755) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, PROGRAM)
    return out.getvalue()


HOSTILE = {
    "up": tar_of(regular("uv-x/uv"), regular("../evil")),
    "up as program": tar_of(regular("../uv")),
    "absolute": tar_of(regular("/tmp/evil"), regular("uv-x/uv")),
    "windows": tar_of(regular("uv-x/uv"), regular("..\\evil")),
    "drive": tar_of(regular("uv-x/uv"), regular("C:evil")),
    "symlink": tar_of(link("uv-x/uv", "/bin/sh")),
    "symlink and file": tar_of(link("uv-x", "/tmp"), regular("uv-x/uv")),
    "hard link": tar_of(regular("uv-x/uv"), link("uv-x/more", "/etc/passwd", tarfile.LNKTYPE)),
    "device": tar_of(regular("uv-x/uv"), link("uv-x/null", "", tarfile.CHRTYPE)),
    "two programs": tar_of(regular("a/uv"), regular("b/uv")),
    "no program": tar_of(regular("uv-x/readme")),
    "many": tar_of(regular("uv-x/uv"), *(regular(f"uv-x/{k}", b"") for k in range(1000))),
    "not an archive": b"hello" * 100,
    "zip up": zip_of("../uv.exe"),
    "zip link": zip_of("uv.exe", mode=0o120777),
    "zip absolute": zip_of("/uv.exe"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_36_a_hostile_archive_is_refused_even_with_the_right_digest(tmp_path: Path, name: str) -> None:
    """Row 36."""
    server, tools = Server(HOSTILE[name]), tmp_path / "user" / "tools"
    try:
        with pytest.raises(InstallError) as caught:
            fetch(server, tools)
    finally:
        server.server.shutdown()
        server.server.server_close()
    assert "\n" not in str(caught.value)
    assert not (tools / "uv").exists() and not (tools / "uv.exe").exists()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name != "uv.part") == sorted(
        ["user", "tools", *(path.name for path in tools.glob("*.part") if path.name != "uv.part")]
    )


def test_an_archive_of_windows_is_unpacked(tmp_path: Path) -> None:
    server = Server(zip_of("uv.exe", "uvx.exe"))
    try:
        assert fetch(server, tmp_path).name == "uv.exe"
    finally:
        server.server.shutdown()
        server.server.server_close()


def test_the_pinned_release_has_an_archive_for_every_supported_machine() -> None:
    release = UvRelease()
    assert release.version in release.address and release.address.startswith("https://")
    assert {("linux", "x86_64"), ("win32", "amd64"), ("darwin", "arm64")} == set(release.archives)
    for name, digest in release.archives.values():
        assert len(digest) == 64 and name.startswith("uv-")


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def test_an_old_uv_and_one_that_does_not_start_are_passed_over(tmp_path: Path) -> None:
    variables = {"PATH": f"{tmp_path / 'path'}:/bin:/usr/bin", "HOME": str(tmp_path / "home")}
    script(tmp_path / "path" / "uv", "echo uv 0.4.1\n")
    script(tmp_path / "home" / ".cargo" / "bin" / "uv", "exit 1\n")
    assert find_uv(tmp_path / "tools", variables) is None
    good = script(tmp_path / "home" / ".local" / "bin" / "uv", "echo 'uv 0.13.8 (x86_64)'\n")
    assert find_uv(tmp_path / "tools", variables) == good


def test_pythons_are_asked_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_tools.Path, "is_file", lambda path: str(path).startswith(str(tmp_path)))
    variables = {"PATH": str(tmp_path / "path"), "HOME": str(tmp_path / "home")}
    script(tmp_path / "path" / "python3.11", "echo 3 11 64\n")
    script(tmp_path / "path" / "python3", "echo 3 14 64\n")
    script(tmp_path / "home" / ".pyenv" / "versions" / "3.12.1" / "bin" / "python3.12", "echo 3 12 32\n")
    assert find_pythons(variables) == {"3.11": tmp_path / "path" / "python3.11"}
    assert find_pythons(variables, (tmp_path / "path",)) == {}, "Blender's own Python is left alone"
    script(tmp_path / "path" / "python3.11", "exit 1  # as without venv\n")
    assert find_pythons(variables) == {}


def test_the_user_s_settings_of_pip_reach_uv(tmp_path: Path) -> None:
    config = tmp_path / ".config" / "pip" / "pip.conf"
    config.parent.mkdir(parents=True)
    config.write_text(
        "[global]\nindex-url = https://mirror.example/simple\nextra-index-url =\n    file:///one\n    file:///two\n"
        "cert = /corp.pem\n[install]\nfind-links = /wheels\n"
    )
    home = {"HOME": str(tmp_path)}
    assert pip_settings(home)["index-url"] == "https://mirror.example/simple"
    translated = uv_settings(home)
    assert translated["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert translated["UV_INDEX"] == "file:///one file:///two" and translated["UV_FIND_LINKS"] == "/wheels"
    assert translated["SSL_CERT_FILE"] == "/corp.pem" and translated["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    over = home | {"PIP_INDEX_URL": "https://other.example/simple", "PIP_NO_INDEX": "1"}
    assert uv_settings(over)["UV_DEFAULT_INDEX"] == "https://other.example/simple"
    assert uv_arguments(over) == ["--no-index"] and uv_arguments(home) == []
    assert "UV_DEFAULT_INDEX" not in uv_settings(home | {"UV_INDEX_URL": "https://own.example"}), "uv's own come first"
    assert "UV_DEFAULT_INDEX" not in uv_settings(home | {"PIP_CONFIG_FILE": os.devnull})


def test_what_would_leak_is_dropped_and_the_sources_stay() -> None:
    caller = {name: "x" for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "UV_SYSTEM_PYTHON", "VIRTUAL_ENV")}
    caller |= {"PIP_INDEX_URL": "i", "UV_DEFAULT_INDEX": "u", "HTTPS_PROXY": "p", "PIP_CERT": "c", "PIP_CACHE_DIR": "d"}
    clean = clean_environment(caller)
    assert not {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "UV_SYSTEM_PYTHON", "VIRTUAL_ENV"} & set(clean)
    assert {"PIP_INDEX_URL", "UV_DEFAULT_INDEX", "HTTPS_PROXY", "PIP_CERT", "PIP_CACHE_DIR"} <= set(clean)
    assert clean["PYTHONNOUSERSITE"] == "1"


def test_uv_s_words_become_progress() -> None:
    meter = UvMeter(3)
    seen = [meter.fraction]
    for line in (
        "Resolved 3 packages in 4ms",
        "Downloading torch (190.0MiB)",
        "Downloading numpy (10.0MiB)",
        " Downloaded numpy",
        " Downloaded torch",
        "Prepared 3 packages in 2s",
        "Installed 3 packages in 1s",
    ):
        meter.take(line)
        seen.append(meter.fraction)
        if line.endswith("numpy"):
            assert meter.text == "downloading 1 of 2, 10 of 210 MB: torch"
    assert seen == sorted(seen) and seen[-1] == 1.0


def test_pip_s_words_become_progress(tmp_path: Path) -> None:
    meter = PipMeter(2, tmp_path)
    seen = [meter.fraction]
    for line in (
        "Collecting torch==2.13.0+cpu",
        "  Downloading torch-2.13.0.whl (191.8 MB)",
        "Collecting numpy==1.26.4",
    ):
        meter.take(line)
        seen.append(meter.fraction)
        if "Downloading" in line:
            assert meter.text == "downloading 1 of 2: torch (191.8 MB)"
    meter.take("Installing collected packages: numpy, torch")
    (tmp_path / "lib" / "python3.11" / "site-packages" / "numpy-1.26.4.dist-info").mkdir(parents=True)
    seen.append(meter.fraction)
    assert meter.text == "unpacking 2 of 2"
    meter.take("Successfully installed numpy torch")
    seen.append(meter.fraction)
    assert seen == sorted(seen) and seen[-1] == 1.0


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("error: failed to write: No space left on device (os error 28)", "disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "sha256 differs"),
        ("error: Hash mismatch for `numpy`", "sha256 differs"),
        ("cause: client error (Connect)\n  cause: invalid peer certificate: UnknownIssuer", "certificate"),
        ("error sending request for url\ncause: dns error: failed to lookup address", "cannot be reached"),
        ("ERROR: No matching distribution found for zstandard==9", "lacks zstandard"),
        ("something else\nerror: it broke", "error: it broke"),
    ],
)
def test_a_failure_is_explained_in_one_line(output: str, words: str) -> None:
    text = explain("uv", output)
    assert words in text and "\n" not in text


def test_an_index_without_this_build_of_torch_is_recognised() -> None:
    assert lacks_torch("Because there is no version of torch==2.13.0+cpu and you require torch==2.13.0+cpu")
    assert lacks_torch("ERROR: No matching distribution found for torch==2.13.0+cpu")
    assert not lacks_torch("ERROR: No matching distribution found for numpy==1.26.4")


@pytest.mark.parametrize(
    ("device", "accelerator_name", "words"),
    [
        (None, "cpu", "no NVIDIA"),
        (accelerator.Nvidia("RTX 4090", "580.65.06", (8, 9)), "cuda", "RTX 4090"),
        (accelerator.Nvidia("RTX 4090", "570.1", (8, 9)), "cpu", "needs 580"),
        (accelerator.Nvidia("GTX 1080", "580.65.06", (6, 1)), "cpu", "too old"),
        (accelerator.Nvidia("?", "", (0, 0)), "cpu", "unknown"),
    ],
)
def test_30_the_accelerator_follows_the_driver(
    device: accelerator.Nvidia | None, accelerator_name: str, words: str
) -> None:
    """Row 30."""
    choice = accelerator.fitting(device)
    assert choice.accelerator == accelerator_name and words in choice.reason


def test_the_accelerator_can_be_chosen_and_machines_without_packages_are_named() -> None:
    assert accelerator.choose("cpu", "linux").accelerator == "cpu"
    assert accelerator.choose("cuda", "win32").accelerator == "cuda"
    assert accelerator.choose("cuda", "darwin").accelerator == "mac"
    assert accelerator.supported("linux", "x86_64") == accelerator.supported("darwin", "arm64") == ""
    assert "mediapipe" in accelerator.supported("linux", "aarch64") and "Apple" in accelerator.supported(
        "darwin", "x86_64"
    )
