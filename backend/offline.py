"""No connections: with Blender's online access off, no socket is opened at all."""

from __future__ import annotations

import socket
import sys
from typing import Any

from backend.errors import MODEL_MISSING, UserError

_INTERNET = (socket.AF_INET, socket.AF_INET6)


def forbid_connections() -> None:
    """From now on every internet socket of this process raises `UserError` OFFLINE; sockets inside the machine stay.

    Cannot be undone: Python's audit hooks stay until the process ends.
    """
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    opens = event == "socket.__new__" and arguments[1] in _INTERNET
    if opens or event == "socket.getaddrinfo":
        raise UserError(
            "the job asked for the network, but online access is off; allow it in Blender's preferences (System) or "
            "put the model's file into the folder of models",
            MODEL_MISSING,
            "OFFLINE",
        )
