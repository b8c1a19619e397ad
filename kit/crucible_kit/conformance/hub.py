"""Hubs: the files of repositories, by name and revision."""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from crucible.port.hub.v1 import hub_pb2 as pb
from crucible_kit.chunks import CHUNK_BYTES
from crucible_kit.conformance.chunks import EDGES, StalledCall, check_bytes, read_chunks, some_bytes
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import CheckSkipped, check, check_equal, check_refused, one_by_one
from crucible_kit.conformance.paging import Page, all_keys, check_pages
from crucible_kit.conformance.requirement import Samples, Suite
from crucible_kit.conformance.settings import SuiteSettings

_MISSING = "no-such-owner/no-such-repository-of-conformance"
_LARGEST_DOWNLOAD = 32 * 1024 * 1024


class HubSettings(SuiteSettings):
    """Settings of the suite of hubs."""

    repo: str = Field(default="builtin:tiny-qwen3", description="Repository to read: a small one with some files.")
    upload_repo: str = Field(
        default="conformance/uploads",
        description="Repository that the suite writes files to, where the adapter declares hub.upload. Empty: none.",
    )


SUITE = Suite(port="hub", settings=HubSettings)
Hub = Context[HubSettings]


def ref(context: Hub, revision: str = "") -> pb.RepoRef:
    """The repository that is read."""
    return pb.RepoRef(repo=context.settings.repo, revision=revision)


async def info(context: Hub, repo: pb.RepoRef) -> pb.GetRepoInfoResponse:
    """A repository."""
    return await context.stub.GetRepoInfo(pb.GetRepoInfoRequest(ref=repo))


def pages(context: Hub, repo: pb.RepoRef) -> Any:
    """What asks for a page of files."""

    async def page(size: int, token: str) -> Page:
        request = pb.ListRepoFilesRequest(ref=repo, page_size=size, page_token=token)
        response = await context.stub.ListRepoFiles(request)
        return Page([(each.path, each.size_bytes, each.sha256) for each in response.files], response.next_page_token)

    return page


async def files(context: Hub, repo: pb.RepoRef) -> list[tuple[str, int, str]]:
    """(path, size, hash) of every file."""
    return await all_keys(pages(context, repo), 0)


async def download(context: Hub, repo: pb.RepoRef, path: str) -> bytes:
    """A file, its chunks looked at."""
    return await read_chunks(context.stub.DownloadFile(pb.DownloadFileRequest(ref=repo, path=path)), what=path)


async def upload(context: Hub, messages: Iterable[pb.UploadFileRequest]) -> pb.UploadFileResponse:
    """Sends the messages of an upload."""

    async def stream() -> AsyncIterator[pb.UploadFileRequest]:
        for each in messages:
            yield each

    return await context.stub.UploadFile(stream())


def header(context: Hub, path: str, data: bytes) -> pb.UploadFileRequest:
    """The first message of an upload."""
    return pb.UploadFileRequest(
        header=pb.UploadFileHeader(
            ref=pb.RepoRef(repo=_upload_repo(context)), path=path, sha256=hashlib.sha256(data).hexdigest()
        )
    )


def chunks(data: bytes) -> list[pb.UploadFileRequest]:
    """The other messages."""
    return [pb.UploadFileRequest(chunk=data[place : place + CHUNK_BYTES]) for place in range(0, len(data), CHUNK_BYTES)]


def _upload_repo(context: Hub) -> str:
    if not context.settings.upload_repo:
        raise CheckSkipped("the setting upload_repo is empty: there is no repository to write to")
    return context.settings.upload_repo


@SUITE.samples
async def _samples(context: Hub) -> Samples:
    path = (await files(context, ref(context)))[0][0]
    data = b"sample"
    samples: dict[str, Any] = {
        "GetRepoInfo": pb.GetRepoInfoRequest(ref=ref(context)),
        "ListRepoFiles": pb.ListRepoFilesRequest(ref=ref(context)),
        "DownloadFile": pb.DownloadFileRequest(ref=ref(context), path=path),
        "SnapshotRepo": pb.SnapshotRepoRequest(ref=ref(context)),
    }
    if context.settings.upload_repo:
        samples["UploadFile"] = [header(context, "conformance/sample.bin", data), *chunks(data)]
    return samples


@SUITE.pings
async def _ping(context: Hub) -> None:
    await info(context, ref(context))


@SUITE.requirement(
    "HUB-INFO-01",
    "GetRepoInfo MUST resolve the revision and count the files that ListRepoFiles lists, and their bytes.",
    quote="The repository with its revision resolved",
)
async def _counts(context: Hub) -> None:
    described, listed = await info(context, ref(context)), await files(context, ref(context))
    check_equal(described.ref.repo, context.settings.repo, "the repository's name")
    check(bool(described.ref.revision), "a resolved revision", "an empty one")
    check_equal(described.num_files, len(listed), "num_files")
    check_equal(described.size_bytes, sum(size for _, size, _ in listed), "size_bytes")
    again = await info(context, ref(context))
    check_equal(again.ref, described.ref, "the revision when asked again")


@SUITE.requirement(
    "HUB-INFO-02",
    "A resolved revision MUST name the same files as long as there are any, another one be NOT_FOUND "
    "REVISION_NOT_FOUND.",
    quote="NOT_FOUND REPO_NOT_FOUND, REVISION_NOT_FOUND or HUB_FILE_NOT_FOUND",
)
async def _revisions(context: Hub) -> None:
    resolved = (await info(context, ref(context))).ref
    check_equal((await info(context, resolved)).ref, resolved, "the revision of a resolved repository")
    listed = await files(context, ref(context))
    check_equal(await files(context, resolved), listed, "the files of the resolved revision")
    other = ref(context, "no-such-revision")
    for what, call in one_by_one(_reads(context, other, listed[0][0])):
        await check_refused(call, "NOT_FOUND", "REVISION_NOT_FOUND", what=f"{what} of an unknown revision")


@SUITE.requirement(
    "HUB-INFO-03",
    "An unknown repository MUST be NOT_FOUND REPO_NOT_FOUND.",
    quote="NOT_FOUND REPO_NOT_FOUND, REVISION_NOT_FOUND or HUB_FILE_NOT_FOUND",
)
async def _unknown_repositories(context: Hub) -> None:
    for what, call in one_by_one(_reads(context, pb.RepoRef(repo=_MISSING), "config.json")):
        await check_refused(call, "NOT_FOUND", "REPO_NOT_FOUND", what=f"{what} of an unknown repository")


def _reads(context: Hub, repo: pb.RepoRef, path: str) -> dict[str, Any]:
    return {
        "GetRepoInfo": info(context, repo),
        "ListRepoFiles": pages(context, repo)(0, ""),
        "DownloadFile": download(context, repo, path),
        "SnapshotRepo": context.stub.SnapshotRepo(pb.SnapshotRepoRequest(ref=repo)),
    }


@SUITE.requirement(
    "HUB-LIST-01",
    "Files MUST be listed by path, each once; pages of any size give the same list.",
    quote="ListRepoFiles lists the files of a revision, sorted by path.",
)
async def _lists(context: Hub) -> None:
    listed = await files(context, ref(context))
    paths = [path for path, _, _ in listed]
    check_equal(paths, sorted(paths), "the order of files")
    check_equal(len(set(paths)), len(paths), "the number of files without repeats")
    await check_pages(pages(context, ref(context)), listed, "the files of a repository")


@SUITE.requirement(
    "HUB-LIST-02",
    "A page token MUST be taken only for the list it comes from: otherwise INVALID_ARGUMENT PAGE_TOKEN_INVALID.",
    quote="Where to go on, from the response before.",
)
async def _tokens(context: Hub) -> None:
    listed = await files(context, ref(context))
    calls = {"what is no token": pages(context, ref(context))(1, "no-token-of-yours")}
    if len(listed) > 1:
        resolved = (await info(context, ref(context))).ref
        token = (await pages(context, ref(context))(1, "")).next_token
        calls["the token of another revision"] = pages(context, resolved)(1, token)
    for what, call in one_by_one(calls):
        await check_refused(call, "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", what=what)


@SUITE.requirement(
    "HUB-DOWNLOAD-01",
    "A file MUST come in chunks of at most 256 KiB, contiguous, each with its CRC-32, and have the size and hash of "
    "the list.",
    quote="DownloadFile streams one file in chunks of at most 256 KiB.",
)
async def _downloads(context: Hub) -> None:
    for path, size, sha256 in await files(context, ref(context)):
        if size <= _LARGEST_DOWNLOAD:
            data = await download(context, ref(context), path)
            check_equal(len(data), size, f"the size of {path}")
            if sha256:
                check_equal(hashlib.sha256(data).hexdigest(), sha256, f"the hash of {path}")


@SUITE.requirement(
    "HUB-DOWNLOAD-02",
    "What is no file of the repository MUST be NOT_FOUND HUB_FILE_NOT_FOUND, and no path lead out of it.",
    quote="NOT_FOUND REPO_NOT_FOUND, REVISION_NOT_FOUND or HUB_FILE_NOT_FOUND",
)
async def _no_files(context: Hub) -> None:
    call = download(context, ref(context), "no-such-file.json")
    await check_refused(call, "NOT_FOUND", "HUB_FILE_NOT_FOUND", what="a file that is not there")
    for path in ("../../../../../../../../etc/passwd", "/etc/passwd"):
        call = download(context, ref(context), path)
        await check_refused(
            call, "NOT_FOUND|INVALID_ARGUMENT", "HUB_FILE_NOT_FOUND", "FIELD_INVALID", what=f"the path {path!r}"
        )


@SUITE.requirement(
    "HUB-SNAPSHOT-01",
    "SnapshotRepo MUST be idempotent and answer with an absolute folder when the files are there, at the resolved "
    "revision.",
    quote="SnapshotRepo brings a revision's files into a local folder of the adapter and answers when they are all "
    "there.",
)
async def _snapshots(context: Hub) -> None:
    request = pb.SnapshotRepoRequest(ref=ref(context))
    first, again = await context.stub.SnapshotRepo(request), await context.stub.SnapshotRepo(request)
    check_equal(again, first, "a second SnapshotRepo")
    check(first.local_path.startswith("/"), "an absolute folder", first.local_path)
    check_equal(first.ref, (await info(context, ref(context))).ref, "the revision of the snapshot")
    await asyncio.to_thread(_check_folder, first.local_path, await files(context, ref(context)))


def _check_folder(name: str, listed: Iterable[tuple[str, int, str]]) -> None:
    """The files are there. The adapter may run on another machine, where nobody can look."""
    folder = Path(name)
    if not folder.is_dir():
        return
    for path, size, sha256 in listed:
        check((folder / path).is_file(), f"the file {path} in {folder}", "none")
        data = (folder / path).read_bytes()
        check_equal(len(data), size, f"the size of {path} in the snapshot")
        if sha256:
            check_equal(hashlib.sha256(data).hexdigest(), sha256, f"the hash of {path} in the snapshot")


@SUITE.requirement(
    "HUB-SNAPSHOT-02",
    "A snapshot by patterns MUST hold the files that match one of them.",
    quote="Only files whose path matches one of these shell patterns, such as *.json. Empty: all.",
)
async def _patterns(context: Hub) -> None:
    request = pb.SnapshotRepoRequest(ref=ref(context), allow_patterns=["*.json", "no-such-*"])
    folder = (await context.stub.SnapshotRepo(request)).local_path
    matching = [each for each in await files(context, ref(context)) if fnmatch.fnmatchcase(each[0], "*.json")]
    await asyncio.to_thread(_check_folder, folder, matching)


@SUITE.requirement(
    "HUB-UPLOAD-01",
    "An uploaded file MUST be in the revision that is answered, with the same bytes; one that is there is replaced.",
    quote="Path of the file; a file that is there is replaced. Required.",
    capability="hub.upload",
)
async def _uploads(context: Hub) -> None:
    path = f"{context.name()}.bin"
    for size in EDGES:
        data = some_bytes(size, seed=size % 7)
        response = await upload(context, [header(context, path, data), *chunks(data)])
        check_equal(response.ref.repo, _upload_repo(context), "the repository of an upload")
        check(bool(response.ref.revision), "the revision that holds the file", "an empty one")
        check_bytes(await download(context, response.ref, path), data, f"an uploaded file of {size} bytes")
    sizes = {name: length for name, length, _ in await files(context, response.ref)}
    check_equal(sizes.get(path), EDGES[-1], "the size of an uploaded file in the list")


@SUITE.requirement(
    "HUB-UPLOAD-02",
    "An upload with another hash MUST be DATA_LOSS and store nothing: an older file stays.",
    quote="SHA-256 of the content; other content is DATA_LOSS. Required.",
    capability="hub.upload",
)
async def _damaged_uploads(context: Hub) -> None:
    fresh, used = f"{context.name()}.bin", f"{context.name()}.bin"
    kept = (await upload(context, [header(context, used, b"old"), *chunks(b"old")])).ref
    for path in (fresh, used):
        call = upload(context, [header(context, path, b"new"), *chunks(b"won")])
        await check_refused(call, "DATA_LOSS", what="an upload with another hash")
    await _check_absent(context, fresh)
    newest = pb.RepoRef(repo=kept.repo)
    check_bytes(await download(context, newest, used), b"old", "the older file after a refused upload")


@SUITE.requirement(
    "HUB-UPLOAD-03",
    "The header of an upload MUST come first and once; otherwise it is INVALID_ARGUMENT FIELD_INVALID and stores "
    "nothing.",
    quote="The first message, exactly once.",
    capability="hub.upload",
)
async def _disordered_uploads(context: Hub) -> None:
    path, data = f"{context.name()}.bin", b"abc"
    head = header(context, path, data)
    await upload(context, [header(context, f"{context.name()}.bin", data), *chunks(data)])
    cases: dict[str, list[pb.UploadFileRequest]] = {
        "no header": chunks(data),
        "two headers": [head, head, *chunks(data)],
        "a message of nothing": [head, pb.UploadFileRequest()],
        "no message": [],
    }
    for what, messages in cases.items():
        call = upload(context, messages)
        await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what=f"an upload with {what}")
    await _check_absent(context, path)


@SUITE.requirement(
    "HUB-UPLOAD-04",
    "An upload that its caller cancels before all of it was sent MUST store nothing.",
    capability="hub.upload",
)
async def _cancelled_uploads(context: Hub) -> None:
    path, data = f"{context.name()}.bin", some_bytes(2 * CHUNK_BYTES)
    await upload(context, [header(context, f"{context.name()}.bin", b""), *chunks(b"")])
    async with StalledCall([header(context, path, data), *chunks(data)][:-1]) as stalled:
        call = await stalled.begin(context.stub.UploadFile)
        call.cancel()
    await _check_absent(context, path)


async def _check_absent(context: Hub, path: str) -> None:
    call = download(context, pb.RepoRef(repo=_upload_repo(context)), path)
    await check_refused(call, "NOT_FOUND", "HUB_FILE_NOT_FOUND", what="the file of a refused upload")
