"""The download against a hub with every fault: it goes on where it stopped, and takes nothing without its hash."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from backend.context import Context, QuietSink
from backend.diffusion import licences, registry
from backend.diffusion.download import Patience, fetch, plan
from backend.diffusion.model_row import ModelFile, ModelRow
from backend.diffusion.transport import Transport
from backend.diffusion.weights import Weights
from backend.errors import Cancelled, UserError
from tests.diffusion.mock_hub import COMMIT, MockHub, mock_hub

REPOSITORY = "prs-eth/marigold-normals-v0-1"
QUICK = Patience(attempts=3, wait_s=0.001)
BIG = 1_600_000


def tensors(seed: int, numbers: int = BIG // 4) -> bytes:
    return save({"weight": torch.rand(numbers, generator=torch.Generator().manual_seed(seed))}, {"format": "pt"})


FILES = {"config.json": b'{"a": 1}', "preprocessor_config.json": b'{"b": 2}', "model.safetensors": tensors(0)}
ROW = replace(
    registry.row("marigold-normals"),
    files=tuple(ModelFile(path) for path in ("config.json", "*.safetensors", "preprocessor_config.json")),
)


@dataclass
class Recorder(QuietSink):
    """Progress as it was told; can cancel at a share."""

    lines: list[tuple[str, float, float, str]] = field(default_factory=list)
    context: Context | None = None
    cancel_at: float = 2.0

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        self.lines.append((stage, done, total, note))
        if self.context is not None and done >= self.cancel_at * total:
            self.context.cancel_event.set()


@dataclass
class Setting:
    """One hub and one folder of models."""

    hub: MockHub
    weights: Weights
    tmp_path: Path
    token: str | None = None

    def transport(self) -> Transport:
        return Transport(self.hub.base, lambda host: self.token, timeout_s=2.0)

    def fetch(self, row: ModelRow = ROW, sink: Recorder | None = None, **options: Any) -> Any:
        context = Context(self.tmp_path / "scratch", sink=sink or QuietSink())
        if sink is not None:
            sink.context = context
        return fetch(row, self.weights, self.transport(), context, patience=QUICK, **options)

    def refused(self, match: str, row: ModelRow = ROW) -> UserError:
        with pytest.raises(UserError, match=match) as caught:
            self.fetch(row)
        assert not self.weights.installed(row.id)
        assert self.hub.token not in caught.value.message
        return caught.value

    def assert_right(self, files: dict[str, bytes] = FILES) -> None:
        folder = self.weights.folder(ROW.id, "published")
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert found == files

    @property
    def part(self) -> Path:
        return self.weights.root / ROW.id / "model.safetensors.part"


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with mock_hub({REPOSITORY: {**FILES, "modeling.py": b"x", "pytorch_model.bin": b"x"}}) as hub:
        weights = Weights(tmp_path / "models")
        licences.accept(weights.root, ROW, ROW.licence)
        yield Setting(hub, weights, tmp_path)


def test_a_model_arrives_whole_and_is_locked(at: Setting) -> None:
    listing = plan(ROW, at.weights, at.transport())
    sink = Recorder()
    lock = at.fetch(sink=sink)
    at.assert_right()
    assert listing.total_bytes == lock.total_bytes == sum(map(len, FILES.values()))
    assert (lock.revision, lock.repository, lock.origin) == (COMMIT, REPOSITORY, "hub")
    totals = {total for _, _, total, _ in sink.lines}
    assert totals == {listing.total_bytes / 1e6}  # known beforehand, and it never changes
    done = [line[1] for line in sink.lines]
    assert done == sorted(done) and done[-1] == pytest.approx(listing.total_bytes / 1e6)
    source = at.weights.source(ROW.id)
    assert source.revision == COMMIT and source.commercial


def test_what_is_there_is_not_fetched_again(at: Setting) -> None:
    at.fetch()
    before, path = len(at.hub.file_requests()), at.weights.root / ROW.id / "model.safetensors"
    at.fetch()
    path.touch()  # its time says nothing now: it is read again, and is right
    at.fetch()
    at.assert_right()
    assert len(at.hub.file_requests()) == before


def test_nothing_is_asked_before_the_licence_is_accepted(at: Setting) -> None:
    (at.weights.root / licences.FILE).unlink()
    error = at.refused("--accept")
    assert ROW.licence in error.message and ROW.licence_url in error.message
    assert at.hub.seen == []
    with pytest.raises(UserError, match="not 'MIT'"):
        licences.accept(at.weights.root, ROW, "MIT")
    at.refused("--accept")


def test_acceptance_is_recorded_with_date_and_is_for_this_licence_only(at: Setting) -> None:
    entry = json.loads((at.weights.root / licences.FILE).read_text())[ROW.id]
    assert entry["licence"] == ROW.licence and entry["accepted"].startswith("20") and entry["commercial"] is True
    changed = replace(ROW, terms=replace(ROW.terms, name="Another-1.0"))
    assert not licences.accepted(at.weights.root, changed)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_cut_connection_is_resumed_by_range(at: Setting, share: float) -> None:
    at.hub.faults.drops = [share]
    at.fetch()
    at.assert_right()
    ranges = [request.headers.get("range") for request in at.hub.file_requests() if "model.saf" in request.path]
    assert ranges == [None, f"bytes={int(share * len(FILES['model.safetensors']))}-" if share else None]


def test_many_cuts_are_no_failure_as_long_as_bytes_come(at: Setting) -> None:
    at.hub.faults.drops = [step / 20 for step in range(1, 20)]
    at.fetch()
    at.assert_right()


def test_a_line_that_brings_nothing_ends_with_what_came_kept(at: Setting) -> None:
    at.hub.faults.drops = [0.5, 0.5, 0.5, 0.5, 0.5]
    error = at.refused("kept")
    assert error.kind == "OFFLINE"
    assert at.part.read_bytes() == FILES["model.safetensors"][: len(FILES["model.safetensors"]) // 2]
    at.hub.faults.drops = []
    at.fetch()
    at.assert_right()


def test_a_server_without_ranges_begins_anew(at: Setting) -> None:
    at.hub.faults.drops = [0.5]
    at.hub.faults.no_range = True
    at.fetch()
    at.assert_right()


def test_a_server_that_sends_another_part_is_not_believed(at: Setting) -> None:
    at.hub.faults.drops = [0.5]
    at.hub.faults.wrong_range = True
    at.refused("another part")
    at.hub.faults.wrong_range = False
    at.fetch()
    at.assert_right()


def test_a_cancelled_fetch_keeps_what_came(at: Setting) -> None:
    with pytest.raises(Cancelled):
        at.fetch(sink=Recorder(cancel_at=0.5))
    assert 0 < at.part.stat().st_size < len(FILES["model.safetensors"])
    assert not at.weights.installed(ROW.id)
    at.fetch()
    at.assert_right()
    assert at.hub.file_requests()[-1].headers.get("range") or at.hub.file_requests()[-2].headers.get("range")


def test_a_wrong_hash_is_never_accepted(at: Setting) -> None:
    at.hub.faults.corrupt = {"model.safetensors": 5}
    error = at.refused("another hash")
    assert error.kind == "BAD_MODEL"
    assert not at.part.exists() and not at.part.with_name("model.safetensors").exists()
    at.hub.faults.corrupt = {"preprocessor_config.json": 5}  # a small file is held to the name that git gives it
    at.refused("preprocessor_config.json")


def test_a_damaged_part_is_thrown_away_and_fetched_anew(at: Setting) -> None:
    at.part.parent.mkdir(parents=True)
    for damage in (bytes(1000), FILES["model.safetensors"] + b"more", bytes(len(FILES["model.safetensors"]))):
        at.part.write_bytes(damage)
        at.fetch()
        at.assert_right()
        at.part.with_name("model.safetensors").unlink()


def test_a_damaged_file_is_found_and_only_it_is_fetched_again(at: Setting) -> None:
    at.fetch()
    path = at.weights.folder(ROW.id) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged.*model.safetensors.*models fetch marigold-normals"):
        at.weights.folder(ROW.id)
    before = len(at.hub.file_requests())
    at.fetch()
    at.assert_right()
    assert len(at.hub.file_requests()) == before + 1


def test_a_captive_portal_is_recognised(at: Setting) -> None:
    at.hub.faults.portal = True
    at.refused("captive portal")
    at.hub.faults.portal = False
    at.hub.faults.portal_files = True
    at.refused("captive portal")
    assert not list(at.weights.root.rglob("*.json.part")) or at.part.parent.joinpath("config.json").exists() is False


def test_a_redirect_without_encryption_is_refused(at: Setting) -> None:
    at.hub.faults.redirect_to = "http://models.invalid/file"
    at.refused("without encryption")
    at.hub.faults.redirect_to = "ftp://models.invalid/file"
    at.refused("no web address")
    at.hub.faults.redirect_to = ""
    at.hub.faults.circles = True
    at.refused("circles")


def test_the_hub_itself_must_be_encrypted_unless_it_is_this_machine() -> None:
    for address in ("http://huggingface.co", "http://10.0.0.1", "huggingface.co", "file:///etc", "https://a:b@c.de"):
        with pytest.raises(UserError):
            Transport(address, lambda host: None)
    Transport("https://hub.example", lambda host: None)


def test_a_huge_announced_size_is_refused_before_a_byte_is_read(at: Setting) -> None:
    at.hub.faults.announce = 10**15
    error = at.refused("announces")
    assert error.kind == "BAD_MODEL"
    assert sum(path.stat().st_size for path in at.weights.root.rglob("*.part")) == 0


def test_a_model_larger_than_the_disk_is_refused_beforehand(at: Setting) -> None:
    listing = json.loads(at.hub.listing(REPOSITORY))
    listing["siblings"][2]["lfs"]["size"] = 10**14
    at.hub.faults.listing = json.dumps(listing).encode()
    error = at.refused("make room")
    assert error.kind == "DISK_FULL" and at.hub.file_requests() == []


@pytest.mark.parametrize(
    "listing",
    [
        b"not json",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"sha": "main", "siblings": []}',
        b'{"sha": "' + COMMIT.encode() + b'", "siblings": [{"rfilename": "config.json"}]}',
        b'{"sha": "' + COMMIT.encode() + b'", "siblings": [{"rfilename": "config.json", "size": -1}]}',
        b'{"sha": "' + COMMIT.encode() + b'", "siblings": 3}',
        b'{"sha": "' + COMMIT.encode() + b'", "siblings": [{"rfilename": 3, "size": 3}]}',
        b'{"sha": "' + COMMIT.encode() + b'", "siblings": [{"rfilename": "a.json", "size": 3, "lfs": "x"}]}',
    ],
)
def test_a_listing_that_is_none_is_refused(at: Setting, listing: bytes) -> None:
    at.hub.faults.listing = listing
    at.refused("listing|captive portal|has no config.json")


def test_names_that_lead_outside_are_never_written(at: Setting, tmp_path: Path) -> None:
    names = ["../evil.safetensors", "/evil.safetensors", "a/../../evil.safetensors", "C:evil.safetensors", "a\\b.json"]
    listing = json.loads(at.hub.listing(REPOSITORY))
    listing["siblings"] += [{"rfilename": name, "size": 3, "blobId": COMMIT} for name in names]
    at.hub.faults.listing = json.dumps(listing).encode()
    at.fetch()
    at.assert_right()
    assert not list(tmp_path.rglob("evil*"))


def test_a_missing_repository_commit_or_file_is_named(at: Setting) -> None:
    at.refused("nobody/nothing", replace(ROW, repository="nobody/nothing"))
    at.refused("commit ffffffff", replace(ROW, revision="f" * 40))
    at.refused("no other.json", replace(ROW, files=(*ROW.files, ModelFile("other.json"))))
    at.hub.faults.missing = {"model.safetensors"}
    at.refused("model.safetensors")


def test_what_the_registry_knows_must_be_what_the_hub_says(at: Setting) -> None:
    for file in (ModelFile("model.safetensors", None, "0" * 64), ModelFile("model.safetensors", 5)):
        at.refused("than the registry", replace(ROW, files=(file,)))
    assert at.hub.file_requests() == []


def test_the_locked_commit_stays_until_an_update_is_asked_for(at: Setting) -> None:
    at.fetch()
    newer = "f" * 40
    with mock_hub({REPOSITORY: {**FILES, "model.safetensors": tensors(1)}}, newer) as hub:
        at.hub = hub
        with pytest.raises(UserError, match=COMMIT[:12]):
            at.fetch()
        at.assert_right()
        assert at.fetch(update=True).revision == newer
        at.assert_right(hub.files[REPOSITORY])


def test_a_busy_hub_is_asked_again(at: Setting) -> None:
    plan(ROW, at.weights, at.transport())
    listing = at.hub.listing(REPOSITORY)
    at.hub.faults.listing = listing
    seen = len(at.hub.seen)

    def busy() -> None:
        while len(at.hub.seen) < seen + 1:
            pass
        at.hub.faults.busy = 1

    thread = threading.Thread(target=busy)
    thread.start()
    at.fetch()
    thread.join()
    at.assert_right()


def test_a_gated_model_needs_the_token_and_only_the_hub_gets_it(at: Setting) -> None:
    at.hub.faults.gated = True
    error = at.refused("models token")
    assert f"{at.hub.base}/{REPOSITORY}" in error.message
    at.token = "hf_a-wrong-token"
    error = at.refused("accept its licence with your account")
    assert "wrong-token" not in error.message
    at.token = at.hub.token
    at.fetch()
    at.assert_right()
    for request in at.hub.seen:
        if request.where == "cdn":  # another address: the real one is another company
            assert "authorization" not in request.headers and at.hub.token not in str(request)
    assert any(request.headers.get("authorization") for request in at.hub.seen if request.where == "hub")


def test_no_connection_says_what_to_do(at: Setting) -> None:
    address = at.hub.base
    with mock_hub({}) as gone:
        address = gone.base
    context = Context(at.tmp_path / "scratch")
    with pytest.raises(UserError, match="no connection.*Run the same command again") as caught:
        fetch(ROW, at.weights, Transport(address, lambda host: None), context, patience=QUICK)
    assert caught.value.kind == "OFFLINE"


def test_a_second_fetch_of_the_same_model_waits_its_turn(at: Setting) -> None:
    at.hub.faults.bytes_per_s = 3e6
    errors: list[BaseException] = []

    def first() -> None:
        try:
            at.fetch()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    while not at.part.is_file():
        assert thread.is_alive()
    with pytest.raises(UserError, match="another process"):
        at.fetch()
    thread.join()
    assert not errors
    at.assert_right()


def test_files_that_nobody_listed_are_not_taken_for_the_models(at: Setting) -> None:
    at.fetch()
    stranger = at.weights.root / ROW.id / "other.safetensors"
    stranger.write_bytes(tensors(3, 10))
    with pytest.raises(UserError, match=r"other\.safetensors is not part of the model"):
        at.weights.folder(ROW.id)
    with pytest.raises(UserError, match=r"other\.safetensors does not belong"):
        at.fetch()
    stranger.unlink()
    at.assert_right()


def test_a_pickle_that_the_hub_calls_safetensors_is_not_installed(at: Setting) -> None:
    at.hub.files[REPOSITORY]["model.safetensors"] = b"\x80\x04\x95" + random.Random(0).randbytes(500)
    at.refused("not loaded")
