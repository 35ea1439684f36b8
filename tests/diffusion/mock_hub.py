"""A hub on this machine's loopback with the faults of real networks, for tests of the download.

It speaks what `hub` asks for: the listing of a repository at a commit, and files, which it redirects to a second
address as the real one does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PORTAL = b"<!DOCTYPE html><html><title>Log in to this network</title><body>Please log in.</body></html>"


@dataclass
class Faults:
    """What goes wrong; each may be changed while the hub runs.

    Attributes:
        drops: Shares of a file after which its next transfers are cut, used up one by one.
        no_range: Range is ignored.
        wrong_range: A resumed transfer begins one byte too late.
        gated: Files and listing want a token.
        portal: Every answer is a log-in page.
        portal_files: Only files are.
        redirect_to: Files are redirected there.
        circles: Files are redirected to themselves.
        announce: Content-Length of files.
        corrupt: Paths of which one byte is wrong, with how many times that happens.
        busy: So many requests are answered with 503.
        bytes_per_s: Speed of files.
        listing: Replaces the listing's text.
        missing: Paths that the listing names and the server does not have.
    """

    drops: list[float] = field(default_factory=list)
    no_range: bool = False
    wrong_range: bool = False
    gated: bool = False
    portal: bool = False
    portal_files: bool = False
    redirect_to: str = ""
    circles: bool = False
    announce: int | None = None
    corrupt: dict[str, int] = field(default_factory=dict)
    busy: int = 0
    bytes_per_s: float = 0.0
    listing: bytes = b""
    missing: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Seen:
    """One request.

    Attributes:
        where: "hub" or "cdn".
        path: With the question.
        headers: By lower-case name.
    """

    where: str
    path: str
    headers: dict[str, str]


class MockHub:
    """Repositories of one commit each.

    Attributes:
        base: Address of the hub.
        files: Content by repository and path; those of at least 100 bytes count as LFS, with a sha256.
        faults: What goes wrong.
        seen: All requests so far.
    """

    def __init__(self, files: dict[str, dict[str, bytes]], commit: str = COMMIT) -> None:
        self.files = files
        self.commit = commit
        self.faults = Faults()
        self.seen: list[Seen] = []
        self.token = "hf_the-right-token"
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, name)) for name in ("hub", "cdn")]
        self.base, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def file_requests(self) -> list[Seen]:
        return [request for request in self.seen if request.where == "cdn"]

    def listing(self, repository: str) -> bytes:
        siblings: list[dict[str, Any]] = []
        for path, content in self.files[repository].items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if len(content) >= 100:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return json.dumps({"id": repository, "sha": self.commit, "siblings": siblings}).encode()


@contextlib.contextmanager
def mock_hub(files: dict[str, dict[str, bytes]], commit: str = COMMIT) -> Iterator[MockHub]:
    hub = MockHub(files, commit)
    try:
        yield hub
    finally:
        hub.close()


def _handler(hub: MockHub, name: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            hub.seen.append(Seen(name, self.path, {key.lower(): value for key, value in self.headers.items()}))
            faults = hub.faults
            if faults.busy > 0:
                faults.busy -= 1
                self.answer(503, b"busy", {"Content-Type": "text/plain"})
            elif faults.portal:
                self.answer(200, PORTAL, {"Content-Type": "text/html; charset=utf-8"})
            elif name == "hub":
                self.hub_answer()
            else:
                self.file_answer()

        def hub_answer(self) -> None:
            faults, path = hub.faults, unquote(urlsplit(self.path).path)
            authorised = self.headers.get("Authorization") == f"Bearer {hub.token}"
            if faults.gated and not authorised:
                self.answer(401, b"{}", {"X-Error-Code": "GatedRepo", "Content-Type": "application/json"})
            elif found := re.fullmatch(r"/api/models/(.+)/revision/(.+)", path):
                if found[1] not in hub.files or found[2] not in ("main", hub.commit):
                    self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})  # as the real one, to strangers
                else:
                    body = faults.listing or hub.listing(found[1])
                    self.answer(200, body, {"Content-Type": "application/json"})
            elif (found := re.fullmatch(rf"/(.+?)/resolve/{hub.commit}/(.+)", path)) and found[1] in hub.files:
                target = faults.redirect_to or (self.path if faults.circles else f"{hub.cdn}{self.path}")
                self.answer(302, b"", {"Location": target})
            else:
                self.answer(404, b"", {})

        def file_answer(self) -> None:
            faults = hub.faults
            found = re.fullmatch(rf"/(.+?)/resolve/{hub.commit}/(.+)", unquote(self.path))
            content = hub.files.get(found[1], {}).get(found[2]) if found else None
            if found is None or content is None or found[2] in faults.missing:
                self.answer(404, b"", {})
                return
            if faults.portal_files:
                self.answer(200, PORTAL, {"Content-Type": "text/html"})
                return
            if faults.corrupt.get(found[2], 0) > 0:
                faults.corrupt[found[2]] -= 1
                content = bytes([content[0] ^ 1]) + content[1:]
            headers, begin = {"Content-Type": "application/octet-stream"}, 0
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if asked and not faults.no_range:
                begin = int(asked[1]) + faults.wrong_range
                if begin >= len(content):
                    self.answer(416, b"", {})
                    return
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            self.answer(206 if begin else 200, content[begin:], headers, begin, len(content))

        def answer(self, status: int, body: bytes, headers: dict[str, str], begin: int = 0, whole: int = 0) -> None:
            faults = hub.faults
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            announce = faults.announce if whole and faults.announce is not None else len(body)
            self.send_header("Content-Length", str(announce))
            self.end_headers()
            cut = max(int(faults.drops.pop(0) * whole) - begin, 0) if whole >= 100 and faults.drops else len(body)
            self.send_slowly(body[:cut], faults.bytes_per_s if whole else 0.0)
            if cut < len(body):
                self.close_connection = True

        def send_slowly(self, body: bytes, bytes_per_s: float) -> None:
            step = int(bytes_per_s / 50) or len(body) or 1
            with contextlib.suppress(ConnectionError):  # a client that was killed
                for at in range(0, len(body), step):
                    self.wfile.write(body[at : at + step])
                    self.wfile.flush()
                    if bytes_per_s:
                        time.sleep(0.02)

    return Handler
