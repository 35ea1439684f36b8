"""The user's token for gated models: in the system's keyring and nowhere else.

It is never written to a file, a preference, a log or an environment variable; `transport` sends it to the hub's own
address only.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Final

from backend.errors import INSTALL_MODELS, MODEL_MISSING, UserError

SERVICE: Final = "effigy"
"""Name of the entry in the keyring; the user's name in it is the hub's host."""

INSTALL: Final = f"{INSTALL_MODELS}, or get the model elsewhere and import it"


def read_token(host: str) -> str | None:
    """The token for a hub; None if there is none or no keyring."""
    if importlib.util.find_spec("keyring") is None:
        return None
    keyring = _keyring()
    try:
        return keyring.get_password(SERVICE, host) or None
    except keyring.errors.KeyringError:
        return None  # locked, or a system without one: as if nothing was stored


def store_token(host: str, token: str) -> None:
    """Keep a token in the keyring.

    Raises:
        UserError: If it cannot be one, or this system has no keyring.
    """
    token = token.strip()
    if not token.isascii() or not token.isprintable() or not 8 <= len(token) <= 512 or " " in token:
        raise UserError("that is no token; copy it whole from the hub's settings page (it begins with hf_)")
    keyring = _keyring()
    try:
        keyring.set_password(SERVICE, host, token)
    except keyring.errors.KeyringError as error:
        raise _no_keyring(error) from None


def forget_token(host: str) -> bool:
    """Remove the token of a hub.

    Returns:
        Whether there was one.

    Raises:
        UserError: If this system has no keyring.
    """
    keyring = _keyring()
    try:
        if not keyring.get_password(SERVICE, host):
            return False
        keyring.delete_password(SERVICE, host)
    except keyring.errors.KeyringError as error:
        raise _no_keyring(error) from None
    return True


def _keyring() -> Any:
    if importlib.util.find_spec("keyring") is None:
        raise UserError(f"gated models need the package keyring: {INSTALL}", MODEL_MISSING)
    importlib.import_module("keyring.errors")
    return importlib.import_module("keyring")


def _no_keyring(error: Exception) -> UserError:
    return UserError(
        f"this system's keyring cannot be used ({type(error).__name__}); unlock it (on Linux: a Secret Service such as "
        "GNOME Keyring or KWallet), or get the model elsewhere and import it",
        MODEL_MISSING,
    )
