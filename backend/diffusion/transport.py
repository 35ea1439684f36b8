"""One way to the network: HTTPS to one hub, with every redirect looked at. Standard library only.

Why not a library: the hub's own no longer resumes a file across restarts, and every general one follows redirects by
itself. Here a redirect never leads to plain HTTP, the token never leaves the hub's own address, and an answer is
bounded before it is read. Proxies are taken from the environment, as everywhere.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import importlib.util
import json
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from backend import __version__
from backend.errors import FAILED, UserError

LARGEST_ANSWER: Final = 32_000_000
"""Bytes of a listing; one of ten thousand files has about 3 MB."""

MOST_REDIRECTS: Final = 5
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_PASSING: Final = (408, 425, 429, 500, 502, 503, 504)


class InterruptedTransferError(Exception):
    """The connection was cut, stalled or refused for the moment: worth another try. The text is for people."""


class MissingError(Exception):
    """The hub does not have what was asked for."""


class GatedError(Exception):
    """The hub wants an account, or one that has accepted the licence."""


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port of an address."""

    scheme: str
    host: str
    port: int

    @property
    def local(self) -> bool:
        """This machine itself."""
        return self.host in LOOPBACK


def origin(url: str) -> Origin:
    """Where an address leads.

    Raises:
        UserError: If it is no web address.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise UserError(f"{url[:200]} is no web address; give one like https://huggingface.co") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise UserError(f"'{url[:200]}' is no web address; give one like https://huggingface.co")
    return Origin(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80))


@dataclass(frozen=True)
class Transport:
    """The way to one hub.

    Attributes:
        base: Address of the hub or its mirror; plain HTTP is taken for this machine only.
        token: The user's token for a host, or None; asked only when the hub itself is addressed.
        timeout_s: How long a connection may be silent.
    """

    base: str
    token: Callable[[str], str | None]
    timeout_s: float = 20.0

    def __post_init__(self) -> None:
        """Refuse an address without encryption.

        Raises:
            UserError: If `base` is no HTTPS address.
        """
        at = origin(self.base)
        if at.scheme != "https" and not at.local:
            raise UserError(f"the hub's address {self.base[:200]} is not encrypted; give one that begins with https://")

    def json(self, path: str) -> Any:
        """What the hub answers to a question.

        Raises:
            UserError: If the answer is no JSON (a captive portal, most of the time).
            MissingError, GatedError, InterruptedTransferError: As the hub says.
        """
        with contextlib.closing(self.open(path, {"Accept": "application/json"})) as answer:
            refuse_web_page(answer, self.base)
            text = _read(answer, LARGEST_ANSWER + 1)
        if len(text) > LARGEST_ANSWER:
            raise UserError(f"{origin(self.base).host} answers with more than a listing; check the address", FAILED)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _portal(self.base) from error

    def open(self, path: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Begin to read `path` below the hub's address; redirects are followed if they are safe.

        Raises:
            UserError: If a redirect leads to an unencrypted or another machine's address.
            MissingError, GatedError, InterruptedTransferError: As the hub says.
        """
        home = origin(self.base)
        url = f"{self.base.rstrip('/')}/{path.lstrip('/')}"
        for _ in range(MOST_REDIRECTS + 1):
            at = origin(url)
            if at.scheme != "https" and not (home.local and at.local):
                raise UserError(
                    f"{home.host} sends the download to {at.host} without encryption; it was refused. "
                    "Check the network or the mirror's address",
                    FAILED,
                )
            sent = {"User-Agent": f"effigy/{__version__}", "Accept-Encoding": "identity", **headers}
            if at == home and (token := self.token(home.host)):
                sent["Authorization"] = f"Bearer {token}"
            answer = self._request(url, sent)
            if answer.status not in _REDIRECTS:
                return _checked(answer, at.host)
            target = answer.headers.get("Location", "")
            answer.close()
            if not target:
                break
            url = urljoin(url, target)
        raise UserError(f"{home.host} redirects in circles; try again later or use another mirror", FAILED)

    def _request(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        opener = urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=_certificates()))
        request = urllib.request.Request(url, headers=dict(headers))
        for name in ("Authorization",):  # not among the headers that any later request could inherit
            if value := headers.get(name):
                request.remove_header(name)
                request.add_unredirected_header(name, value)
        try:
            return opener.open(request, timeout=self.timeout_s)
        except urllib.error.HTTPError as error:
            return error  # type: ignore[return-value]  # an answer with a status of its own
        except urllib.error.URLError as error:
            raise _connection_error(origin(url).host, error.reason) from None
        except (OSError, http.client.HTTPException) as error:
            raise _connection_error(origin(url).host, error) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Every redirect comes back as an answer."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none."""
        return None


@functools.lru_cache(maxsize=1)  # reading them takes longer than a small file
def _certificates() -> ssl.SSLContext:
    """The system's certificates, and those of certifi where it is installed: some Pythons come without."""
    context = ssl.create_default_context()
    if importlib.util.find_spec("certifi") is not None:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _connection_error(host: str, reason: Any) -> Exception:
    if isinstance(reason, UserError):  # the network is forbidden in this process
        return reason
    if isinstance(reason, ssl.SSLCertVerificationError):
        text = f"{host} cannot prove that it is {host}: a proxy or a captive portal stands between; check the network"
        return UserError(text, FAILED)
    if isinstance(reason, socket.gaierror):
        return InterruptedTransferError(f"{host} is not found; is this machine online?")
    return InterruptedTransferError(f"no connection to {host} ({_words(reason)})")


def _words(reason: Any) -> str:
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return " ".join(str(text).split())[:120]


def _checked(answer: http.client.HTTPResponse, host: str) -> http.client.HTTPResponse:
    status = answer.status
    if status in (200, 206):
        return answer
    fault = answer.headers.get("X-Error-Code", "")
    answer.close()
    # A repository that is gone is answered with 401 to those without an account: the code tells the two apart.
    if status in (404, 410) or fault in ("RepoNotFound", "RevisionNotFound", "EntryNotFound"):
        raise MissingError(f"{host} does not have it (answer {status})")
    if status in (401, 403):
        raise GatedError(f"{host} wants an account for it (answer {status})")
    if status in _PASSING:
        raise InterruptedTransferError(f"{host} is busy (answer {status})")
    if status == 416:
        raise InterruptedTransferError(f"{host} has no more of this file")
    if status == 511:
        raise _portal(f"https://{host}")
    raise UserError(f"{host} answers {status}; try again later or use another mirror", FAILED)


def refuse_web_page(answer: http.client.HTTPResponse, base: str) -> None:
    """No model file is HTML: a page in its place comes from a captive portal, and so does nothing else of this answer.

    Raises:
        UserError: If the answer is a web page.
    """
    if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise _portal(base)


def _portal(base: str) -> UserError:
    return UserError(
        f"a web page came instead of {origin(base).host}: this network wants a log-in first (captive portal, proxy). "
        "Open a browser, log in, and try again; nothing was accepted",
        FAILED,
    )


def _read(answer: http.client.HTTPResponse, most: int) -> bytes:
    try:
        return answer.read(most)
    except (OSError, http.client.HTTPException) as error:
        raise InterruptedTransferError(f"the connection broke ({_words(error)})") from None


def read_block(answer: http.client.HTTPResponse, most: int) -> bytes:
    """The next bytes of an answer, at most so many; empty at its end.

    Raises:
        InterruptedTransferError: If the connection is cut or stalls.
    """
    try:
        return answer.read1(most)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InterruptedTransferError(f"the connection broke ({_words(error)})") from None
