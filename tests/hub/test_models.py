"""builtin:huggingface of the port hub against a hub on this machine, through the real library."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from crucible.port.hub.v1 import hub_pb2
from crucible_adapters.huggingface import options as adapter_options
from crucible_kit.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.hub.conftest import TOKEN, Adapters
from tests.hub.fake_hub import Fault

CHUNK = 256 * 1024
REPO = "Qwen/Qwen3-tiny"
FILES = {
    "README.md": b"# A model\n",
    "config.json": b'{"model_type": "qwen3"}',
    "model.safetensors": bytes(range(256)) * 1500,
    "original/consolidated.safetensors": b"the same again",
    "pytorch_model.bin": b"pickled",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "vocab.txt": b"",
}
WANTED: dict[str, Any] = {"allow_patterns": ["*.safetensors", "*.json"], "ignore_patterns": ["original/*"]}
WANTED_FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def ref(repo: str = REPO, revision: str = "") -> hub_pb2.RepoRef:
    return hub_pb2.RepoRef(repo=repo, revision=revision)


async def info(stub: Any, repo: str = REPO, revision: str = "") -> hub_pb2.GetRepoInfoResponse:
    return await stub.GetRepoInfo(hub_pb2.GetRepoInfoRequest(ref=ref(repo, revision)))


async def snapshot(stub: Any, repo: str = REPO, revision: str = "", **patterns: list[str]) -> Any:
    return await stub.SnapshotRepo(hub_pb2.SnapshotRepoRequest(ref=ref(repo, revision), **patterns))


async def download(stub: Any, path: str, revision: str = "") -> list[hub_pb2.DownloadFileResponse]:
    request = hub_pb2.DownloadFileRequest(ref=ref(revision=revision), path=path)
    return [response async for response in stub.DownloadFile(request)]


async def upload(stub: Any, path: str, data: bytes, *, repo: str = REPO, revision: str = "", sha256: str = "") -> Any:
    async def requests() -> AsyncIterator[hub_pb2.UploadFileRequest]:
        header = hub_pb2.UploadFileHeader(
            ref=ref(repo, revision), path=path, sha256=sha256 or hashlib.sha256(data).hexdigest()
        )
        yield hub_pb2.UploadFileRequest(header=header)
        for place in range(0, len(data), CHUNK):
            yield hub_pb2.UploadFileRequest(chunk=data[place : place + CHUNK])

    return await stub.UploadFile(requests())


def content(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def partial_downloads(cache: Path) -> list[Path]:
    return list(cache.rglob("*.incomplete"))


async def test_a_repository_is_described_listed_and_read(binding: Binding, adapters: Adapters) -> None:
    repo = adapters.hub.add("models", REPO, FILES)
    commit = repo.branches["main"]
    stub = await binding.stub(adapters.hub_adapter())

    described = await info(stub)
    assert described.ref == ref(revision=commit)
    assert (described.num_files, described.size_bytes) == (len(FILES), sum(map(len, FILES.values())))
    assert described.update_time.ToJsonString() == "2026-01-02T03:04:05Z"

    first = await stub.ListRepoFiles(hub_pb2.ListRepoFilesRequest(ref=ref(), page_size=5))
    # The list goes on where it began, whatever the branch has become.
    repo.commit({"config.json": b"{}"})
    rest = await stub.ListRepoFiles(
        hub_pb2.ListRepoFilesRequest(ref=ref(), page_size=5, page_token=first.next_page_token)
    )
    assert [(each.path, each.size_bytes) for each in (*first.files, *rest.files)] == [
        (name, len(data)) for name, data in sorted(FILES.items())
    ]
    assert rest.next_page_token == ""
    hashes = {each.path: each.sha256 for each in (*first.files, *rest.files)}
    assert hashes["model.safetensors"] == hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert hashes["config.json"] == ""  # git knows another hash of it

    responses = await download(stub, "model.safetensors", revision=commit)
    assert b"".join(each.data for each in responses) == FILES["model.safetensors"]
    assert [each.offset for each in responses] == [0, CHUNK]
    assert all(each.crc32 == zlib.crc32(each.data) for each in responses)


async def test_a_snapshot_holds_what_the_patterns_say_and_is_made_once(adapters: Adapters) -> None:
    hub = adapters.hub
    repo = hub.add("models", REPO, FILES)
    stub = adapters.stub(adapters.hub_adapter())
    both = await asyncio.gather(snapshot(stub, **WANTED), snapshot(stub, **WANTED))
    assert both[0] == both[1]
    folder = both[0].local_path
    assert content(folder) == {name: FILES[name] for name in WANTED_FILES}
    assert both[0].ref == ref(revision=repo.branches["main"])
    assert hub.asked("bin|original|README|vocab") == []

    hub.requests.clear()
    assert await snapshot(stub, **WANTED) == both[0]
    assert hub.asked("resolve|storage|tree") == []
    # Another instance, as after a restart, with more files: only the others are brought.
    again = adapters.stub(adapters.hub_adapter())
    assert await snapshot(again, ignore_patterns=["*.bin", "original/*"]) == both[0]
    assert {each.path.rpartition("/")[2] for each in hub.asked("HEAD")} == {"README.md", "vocab.txt"}

    moved = repo.commit({**FILES, "config.json": b'{"model_type": "other"}'})
    newer = await snapshot(stub, **WANTED)
    assert (newer.ref.revision, content(newer.local_path)["config.json"]) == (moved, b'{"model_type": "other"}')
    assert content(folder)["config.json"] == FILES["config.json"]


async def test_revisions_are_branches_tags_and_commits(adapters: Adapters) -> None:
    repo = adapters.hub.add("models", REPO, {"config.json": b"1"})
    first = repo.branches["main"]
    second = repo.commit({"config.json": b"22"}, "v2.0/next")
    stub = adapters.stub(adapters.hub_adapter())
    found = await asyncio.gather(*(info(stub, revision=each) for each in ("", first, "v2.0/next", second)))
    assert [each.ref.revision for each in found] == [first, first, second, second]
    assert [each.size_bytes for each in found] == [1, 1, 2, 2]
    with refused(NotFoundError, "REVISION_NOT_FOUND", says="'v3'"):
        await snapshot(stub, revision="v3")
    for revision in ("../../../../etc/passwd", "a..b", "-x", "a b", "/x"):
        with refused(InvalidArgumentError, "FIELD_INVALID", field="ref.revision"):
            await snapshot(stub, revision=revision)
    assert len(adapters.hub.asked("v3")) == 1


async def test_what_is_not_there_is_not_found(adapters: Adapters) -> None:
    adapters.hub.add("models", REPO, FILES)
    stub = adapters.stub(adapters.hub_adapter())
    with refused(NotFoundError, "REPO_NOT_FOUND", says="HF_TOKEN"):
        await info(stub, "Qwen/Qwen4")
    with refused(NotFoundError, "REPO_NOT_FOUND"):
        await snapshot(stub, "Qwen/Qwen4")
    with refused(NotFoundError, "HUB_FILE_NOT_FOUND", says="'missing.json'"):
        await download(stub, "missing.json")
    for path in ("../config.json", "/etc/passwd", ""):
        with refused(InvalidArgumentError, "FIELD_INVALID", field="path"):
            await download(stub, path)


@pytest.mark.parametrize("path", ["model.safetensors", "tokenizer.json"])
async def test_a_download_with_another_hash_is_removed(adapters: Adapters, path: str) -> None:
    hub = adapters.hub
    hub.add("models", REPO, FILES)
    stub = adapters.stub(adapters.hub_adapter())
    damaged = Fault("/storage/|resolve/.*/tokenizer.json", change=lambda data: data[:-1] + b"!")
    hub.faults.append(damaged)
    with refused(DataLossError, "HUB_FILE_CORRUPT", says=path):
        await snapshot(stub, allow_patterns=[path])
    assert not [file for file in adapters.cache.rglob(path) if file.exists()]
    hub.faults.clear()
    found = await snapshot(stub, allow_patterns=[path])
    assert content(found.local_path) == {path: FILES[path]}


async def test_a_download_of_another_size_is_not_kept(adapters: Adapters) -> None:
    hub = adapters.hub
    hub.add("models", REPO, FILES)
    stub = adapters.stub(adapters.hub_adapter())
    hub.faults.append(Fault("/storage/", change=lambda data: data[:-1]))
    with refused(DataLossError, "HUB_FILE_CORRUPT"):
        await snapshot(stub, **WANTED)
    assert partial_downloads(adapters.cache) == []
    hub.faults.clear()
    assert content((await snapshot(stub, **WANTED)).local_path) == {name: FILES[name] for name in WANTED_FILES}


async def test_a_private_repository_needs_the_token_of_the_variable(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = adapters.hub
    hub.add("models", REPO, FILES, token=TOKEN)
    # What `hf auth login` has saved is the user's, not the server's.
    adapters.cache.mkdir()
    (adapters.cache / "token").write_text(TOKEN)
    stub = adapters.stub(adapters.hub_adapter(token_variable="TEAM_TOKEN"))
    with refused(NotFoundError, "REPO_NOT_FOUND", says="set TEAM_TOKEN to a token that may read it"):
        await info(stub)
    monkeypatch.setenv("HF_TOKEN", "hf_another_one_altogether")
    monkeypatch.setenv("TEAM_TOKEN", TOKEN)
    stub = adapters.stub(adapters.hub_adapter(token_variable="TEAM_TOKEN"))
    assert content((await snapshot(stub, **WANTED)).local_path) == {name: FILES[name] for name in WANTED_FILES}
    # The hub gets it, its storage on another host does not.
    assert {each.token for each in hub.asked("storage")} == {""}
    assert {each.token for each in hub.asked("resolve|api/models")} == {"", TOKEN}


async def test_a_gated_repository_tells_which_variable_to_set(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub = adapters.hub
    repo = hub.add("models", REPO, FILES, gated=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    stub = adapters.stub(adapters.hub_adapter())
    for call in (info(stub), snapshot(stub, **WANTED)):
        with pytest.raises(KitchenError) as caught:
            await call
        error = caught.value
        assert (type(error), error.reason) == (PermissionDeniedError, "REPO_ACCESS_DENIED")
        assert "set HF_TOKEN" in error.message and f"{hub.url}/{REPO}" in error.message
        assert TOKEN not in error.message + repr(error.metadata)
    # A hub that tells the token: nobody else does.
    hub.faults.append(Fault("/api/models", status=403, headers={"X-Error-Message": f"bad token {TOKEN}"}))
    with refused(PermissionDeniedError, "REPO_ACCESS_DENIED", says="bad token <token>"):
        await info(stub)
    hub.faults.clear()
    repo.consents.add(TOKEN)
    assert (await info(stub)).num_files == len(FILES)
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    ("pattern", "headers"),
    [
        ("blobs", {"Retry-After": "120"}),
        ("/tree/", {"RateLimit": '"api";r=0;t=120'}),
        ("/resolve/", {"Retry-After": "120"}),
    ],
)
async def test_a_rate_limit_is_told_with_its_delay(adapters: Adapters, pattern: str, headers: dict[str, str]) -> None:
    hub = adapters.hub
    commit = hub.add("models", REPO, FILES).branches["main"]
    stub = adapters.stub(adapters.hub_adapter())
    hub.faults.append(Fault(pattern, status=429, headers=headers))
    with pytest.raises(ResourceExhaustedError) as caught:
        await (info(stub) if pattern == "blobs" else snapshot(stub, revision=commit, allow_patterns=["config.json"]))
    assert (caught.value.reason, caught.value.retry_delay) == ("HUB_RATE_LIMITED", 120)
    # The library would ask again, and wait for it.
    assert len(hub.asked(pattern)) == 1


async def test_a_hub_that_fails_is_unavailable(adapters: Adapters) -> None:
    hub = adapters.hub
    hub.add("models", REPO, FILES)
    stub = adapters.stub(adapters.hub_adapter())
    hub.faults.append(Fault("/api/models", status=500, body=b"<html>oops</html>"))
    with refused(UnavailableError, "HUB_UNREACHABLE", says="500"):
        await info(stub)
    with refused(UnavailableError, "HUB_UNREACHABLE", says="500"):
        await snapshot(stub)
    nobody = adapters.stub(adapters.hub_adapter(endpoint="http://127.0.0.1:9"))
    with refused(UnavailableError, "HUB_UNREACHABLE", says="http://127.0.0.1:9"):
        await info(nobody)
    hub.faults[:] = [Fault("/resolve/", status=400, headers={"X-Error-Message": "no such thing"})]
    with refused(FailedPreconditionError, "HUB_REFUSED", says="no such thing"):
        await download(stub, "config.json")


@pytest.mark.parametrize("offline", ["the hub is gone", "HF_HUB_OFFLINE"])
async def test_what_was_brought_is_there_without_the_hub(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch, offline: str
) -> None:
    hub = adapters.hub
    hub.add("models", REPO, FILES)
    before = await snapshot(adapters.stub(adapters.hub_adapter()), **WANTED)
    if offline == "HF_HUB_OFFLINE":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        hub.faults.append(Fault("", status=503))
    hub.requests.clear()
    stub = adapters.stub(adapters.hub_adapter())
    assert await snapshot(stub, **WANTED) == before
    described = await info(stub)
    assert (described.ref.revision, described.num_files) == (before.ref.revision, len(FILES))
    assert b"".join(each.data for each in await download(stub, "config.json")) == FILES["config.json"]
    with refused(UnavailableError, "HUB_UNREACHABLE"):
        await snapshot(stub)  # files that have never been brought
    with refused(UnavailableError, "HUB_UNREACHABLE"):
        await info(stub, "Qwen/Qwen4")
    if offline == "HF_HUB_OFFLINE":
        assert hub.requests == []


async def test_uploads_are_commits(adapters: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = adapters.hub
    repo = hub.add("models", "me/model", {"README.md": b"x"}, ignored="ignored.txt")
    stub = adapters.stub(adapters.hub_adapter())
    with refused(PermissionDeniedError, "REPO_ACCESS_DENIED", says="HF_TOKEN"):
        await upload(stub, "config.json", b"{}", repo="me/model")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    stub = adapters.stub(adapters.hub_adapter())
    files = {"README.md": b"x"}
    for path, data in (("config.json", b"{}"), ("sub/model.safetensors", b"\1" * (CHUNK + 1)), ("empty.txt", b"")):
        response = await upload(stub, path, data, repo="me/model")
        files[path] = data
        assert response.ref == ref("me/model", repo.branches["main"])
        assert repo.commits[repo.branches["main"]] == files
    before = repo.branches["main"]
    same = await upload(stub, "config.json", b"{}", repo="me/model", revision=before)
    assert same.ref.revision == repo.branches["main"] == before
    await upload(stub, "config.json", b"{1}", repo="me/model", revision=before)
    with refused(NotFoundError, "REVISION_NOT_FOUND"):
        await upload(stub, "config.json", b"{2}", repo="me/model", revision=before)
    with refused(DataLossError, "HUB_FILE_CORRUPT", says="nothing was stored"):
        await upload(stub, "config.json", b"{3}", repo="me/model", sha256="0" * 64)
    with refused(FailedPreconditionError, "HUB_REFUSED", says=".gitignore"):
        await upload(stub, "ignored.txt", b"x", repo="me/model")
    with refused(NotFoundError, "REPO_NOT_FOUND"):
        await upload(stub, "config.json", b"{}", repo="me/other")
    assert repo.commits[repo.branches["main"]] == {**files, "config.json": b"{1}"}
    assert list((adapters.context.data_dir / "huggingface" / "uploads").iterdir()) == []


async def test_a_cancelled_call_ends_its_process_and_leaves_no_partial_file(adapters: Adapters) -> None:
    hub = adapters.hub
    hub.add("models", REPO, FILES)
    adapter = adapters.hub_adapter()
    stub = adapters.stub(adapter)
    hanging = Fault("/storage/", hang=threading.Event())
    hub.faults.append(hanging)
    call = asyncio.ensure_future(snapshot(stub, **WANTED))
    assert await asyncio.to_thread(hanging.reached.wait, 60)
    workers = list(adapter._calls._running)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert [each.status is not None for each in workers] == [True]
    assert partial_downloads(adapters.cache) == []
    hanging.hang.set()  # type: ignore[union-attr]
    hub.faults.clear()
    assert content((await snapshot(stub, **WANTED)).local_path) == {name: FILES[name] for name in WANTED_FILES}


async def test_closing_ends_what_is_under_way(adapters: Adapters) -> None:
    hub = adapters.hub
    hub.add("models", REPO, FILES)
    adapter = adapters.hub_adapter()
    stub = adapters.stub(adapter)
    hanging = Fault("/storage/", hang=threading.Event())
    hub.faults.append(hanging)
    call = asyncio.ensure_future(snapshot(stub, **WANTED))
    assert await asyncio.to_thread(hanging.reached.wait, 60)
    workers = list(adapter._calls._running)
    await adapter.close()
    assert [each.status is not None for each in workers] == [True]
    for each in (call, snapshot(stub, **WANTED)):
        with refused(UnavailableError, "ADAPTER_CLOSED"):
            await each


async def test_a_process_that_dies_is_told(adapters: Adapters) -> None:
    hub = adapters.hub
    hub.add("models", REPO, FILES)
    adapter = adapters.hub_adapter()
    stub = adapters.stub(adapter)
    hanging = Fault("/storage/", hang=threading.Event())
    hub.faults.append(hanging)
    call = asyncio.ensure_future(snapshot(stub, **WANTED))
    assert await asyncio.to_thread(hanging.reached.wait, 60)
    next(iter(adapter._calls._running))._process.kill()
    with refused(UnavailableError, "HUB_PROCESS_ENDED", says="-9"):
        await call


def test_without_the_library_the_adapter_says_what_to_install(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_options, "find_spec", lambda name: None)
    with refused(FailedPreconditionError, "PACKAGE_MISSING", says="pip install 'crucible-kitchen[hf]'"):
        adapters.hub_adapter()
    with refused(FailedPreconditionError, "PACKAGE_MISSING", says="datasets"):
        adapters.dataset_adapter()
