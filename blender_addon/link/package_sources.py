"""Where packages come from: the user's own settings of pip and uv, kept as they are. Standard library only.

uv does not read pip's settings. Many machines have a mirror, a proxy or certificates set up for pip only, so these are
handed to uv in its own words, unless the user has told uv something else.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

_LEAKS = (
    "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONSAFEPATH", "PYTHONEXECUTABLE",
    "__PYVENV_LAUNCHER__", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV",
    "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_NO_DEPS", "PIP_REQUIREMENT", "PIP_CONSTRAINT", "PIP_EDITABLE",
    "PIP_DRY_RUN", "PIP_REPORT", "PIP_IGNORE_INSTALLED", "PIP_PRE", "PIP_PYTHON", "PIP_USER", "PIP_NO_BINARY",
    "UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_PROJECT_ENVIRONMENT", "UV_TARGET", "UV_PREFIX", "UV_CONSTRAINT", "UV_OVERRIDE",
    "UV_NO_BINARY", "UV_NO_VERIFY_HASHES", "UV_RESOLUTION", "UV_PRERELEASE", "UV_EXCLUDE_NEWER", "UV_TORCH_BACKEND",
)  # fmt: skip
"""Settings that would let another environment leak into this one or change what is installed."""

_UV_SOURCES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
_PIP_KEYS = ("index-url", "extra-index-url", "find-links", "no-index", "cert", "proxy", "trusted-host")


def clean_environment(caller: Mapping[str, str]) -> dict[str, str]:
    """The caller's variables without those that break the isolation; index, proxy, certificates and cache stay."""
    kept = {name: value for name, value in caller.items() if name not in _LEAKS}
    return kept | {
        "PYTHONNOUSERSITE": "1", "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1", "PIP_USER": "0", "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_REQUIRE_VIRTUALENV": "0", "NO_COLOR": "1",
    }  # fmt: skip


def uv_settings(caller: Mapping[str, str]) -> dict[str, str]:
    """Pip's settings as uv's variables, where uv has none of its own."""
    # Networks with certificates of their own put them into the system's store; Linux has no store for certain.
    out = {} if sys.platform == "linux" else {"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"}
    if _has_uv_sources(caller):
        return out
    pip = pip_settings(caller)
    if "index-url" in pip:
        out["UV_DEFAULT_INDEX"] = pip["index-url"]
    if "extra-index-url" in pip:
        out["UV_INDEX"] = " ".join(pip["extra-index-url"].split())
        # As pip does: the best version of all indexes. A foreign package cannot slip in, its digest is not ours.
        out["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if "find-links" in pip:
        out["UV_FIND_LINKS"] = ",".join(pip["find-links"].split())
    if "trusted-host" in pip:
        out["UV_INSECURE_HOST"] = " ".join(pip["trusted-host"].split())
    if "cert" in pip and not caller.get("SSL_CERT_FILE"):
        out["SSL_CERT_FILE"] = pip["cert"]
    if "proxy" in pip and not any(caller.get(name) for name in ("ALL_PROXY", "HTTPS_PROXY", "https_proxy")):
        out["ALL_PROXY"] = pip["proxy"]
    return out


def uv_arguments(caller: Mapping[str, str]) -> list[str]:
    """What of pip's settings uv takes as an argument only."""
    no_index = pip_settings(caller).get("no-index", "").lower() in ("1", "true", "yes", "on")
    return ["--no-index"] if no_index and not _has_uv_sources(caller) else []


def _has_uv_sources(caller: Mapping[str, str]) -> bool:
    return any(caller.get(name) for name in _UV_SOURCES) or any(path.is_file() for path in _uv_files(caller))


def pip_settings(caller: Mapping[str, str]) -> dict[str, str]:
    """Pip's own settings that say where packages come from: files first, variables over them, as pip does."""
    found: dict[str, str] = {}
    for path in _pip_files(caller):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, configparser.Error, UnicodeError):
            continue  # pip would complain about it; uv does not know it
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= {key: value for key, value in parser.items(section) if key in _PIP_KEYS and value.strip()}
    for key in _PIP_KEYS:
        value = caller.get("PIP_" + key.upper().replace("-", "_"))
        if value:
            found[key] = value
    return found


def _pip_files(caller: Mapping[str, str]) -> Iterator[Path]:
    """Pip's configuration files, the strongest last; /dev/null as PIP_CONFIG_FILE switches them off."""
    named = caller.get("PIP_CONFIG_FILE", "")
    if named and (named == os.devnull or named.lower() == "nul"):
        return
    home = Path(caller.get("HOME") or Path.home())
    if sys.platform == "win32":
        yield Path(caller.get("PROGRAMDATA", r"C:\ProgramData")) / "pip" / "pip.ini"
        yield home / "pip" / "pip.ini"
        yield Path(caller.get("APPDATA") or home / "AppData" / "Roaming") / "pip" / "pip.ini"
    else:
        yield Path("/etc/xdg/pip/pip.conf")
        yield Path("/etc/pip.conf")
        if sys.platform == "darwin":
            yield Path("/Library/Application Support/pip/pip.conf")
            yield home / "Library" / "Application Support" / "pip" / "pip.conf"
        yield home / ".pip" / "pip.conf"
        yield Path(caller.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    if named:
        yield Path(named)


def _uv_files(caller: Mapping[str, str]) -> Iterator[Path]:
    if caller.get("UV_CONFIG_FILE"):
        yield Path(caller["UV_CONFIG_FILE"])
    home = Path(caller.get("HOME") or Path.home())
    if sys.platform == "win32":
        yield Path(caller.get("APPDATA") or home / "AppData" / "Roaming") / "uv" / "uv.toml"
        yield Path(caller.get("PROGRAMDATA", r"C:\ProgramData")) / "uv" / "uv.toml"
    else:
        yield Path(caller.get("XDG_CONFIG_HOME") or home / ".config") / "uv" / "uv.toml"
        yield Path("/etc/uv/uv.toml")
