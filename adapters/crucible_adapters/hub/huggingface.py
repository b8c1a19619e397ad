"""HubClient over the Hugging Face hub: owner/name through its library, everything else as the local adapter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from crucible.port.hub.v1 import hub_pb2, hub_pb2_grpc
from crucible_adapters.hub.local import LocalHub, LocalHubOptions
from crucible_adapters.hub.names import check_revision, is_hub_name
from crucible_adapters.hub.upload import Upload, check_path
from crucible_adapters.huggingface.options import HuggingFaceOptions
from crucible_adapters.huggingface.process import Calls
from crucible_adapters.paths import check_relative
from crucible_adapters.staging import StagingArea
from crucible_adapters.threads import Threads
from crucible_kit import paging
from crucible_kit.adapter import AdapterContext, AdapterDescription
from crucible_kit.chunks import crc32, read_chunks

_THREADS = 4


class HuggingFaceHub(hub_pb2_grpc.HubServiceServicer):
    """Repositories of the hub in its library's cache, by commit."""

    description = AdapterDescription(
        name="huggingface-hub", port="hub", capabilities=("hub.upload",), options=HuggingFaceOptions
    )

    def __init__(self, options: HuggingFaceOptions, context: AdapterContext) -> None:
        """Raises FAILED_PRECONDITION PACKAGE_MISSING."""
        self._calls = Calls(options, context, kind="model", packages=("huggingface_hub",))
        self._local = LocalHub(LocalHubOptions(), context)
        self._folder = context.data_dir / "huggingface"
        self._threads = Threads("huggingface-hub", _THREADS)
        self._staging = StagingArea(self._folder / "uploads", self._threads)

    async def close(self) -> None:
        """Ends what is under way and removes unfinished uploads."""
        await self._calls.close()
        await self._threads.close()
        await self._staging.close()
        await self._local.close()

    async def GetRepoInfo(self, request: hub_pb2.GetRepoInfoRequest, context: Any) -> hub_pb2.GetRepoInfoResponse:
        if not is_hub_name(request.ref.repo):
            return await self._local.GetRepoInfo(request, context)
        described = await self._describe(request.ref)
        response = hub_pb2.GetRepoInfoResponse(
            ref=hub_pb2.RepoRef(repo=request.ref.repo, revision=described["commit"]),
            num_files=len(described["files"]),
            size_bytes=sum(file["size"] for file in described["files"]),
        )
        if described["update_time"] is not None:
            time = Timestamp()
            time.FromNanoseconds(round(described["update_time"] * 1e9))
            response.update_time.CopyFrom(time)
        return response

    async def ListRepoFiles(self, request: hub_pb2.ListRepoFilesRequest, context: Any) -> hub_pb2.ListRepoFilesResponse:
        if not is_hub_name(request.ref.repo):
            return await self._local.ListRepoFiles(request, context)
        size = paging.page_size(request.page_size)
        scope = f"ListRepoFiles\0{request.ref.repo}\0{request.ref.revision}"
        # The list goes on at the commit where it began, whatever the branch has become.
        after, commit = paging.decode(request.page_token, scope) or ("", request.ref.revision)
        described = await self._describe(hub_pb2.RepoRef(repo=request.ref.repo, revision=commit))
        rest = [file for file in described["files"] if file["path"] > after]
        response = hub_pb2.ListRepoFilesResponse(
            files=[
                hub_pb2.RepoFile(path=file["path"], size_bytes=file["size"], sha256=file["sha256"])
                for file in rest[:size]
            ]
        )
        if len(rest) > size:
            response.next_page_token = paging.encode([rest[size - 1]["path"], described["commit"]], scope)
        return response

    async def DownloadFile(
        self, request: hub_pb2.DownloadFileRequest, context: Any
    ) -> AsyncIterator[hub_pb2.DownloadFileResponse]:
        if not is_hub_name(request.ref.repo):
            async for response in self._local.DownloadFile(request, context):
                yield response
            return
        check_revision(request.ref.revision, field="ref.revision")
        check_relative(request.path, self._folder, field="path")
        found = await self._calls.transfer(
            "download",
            request.ref.repo,
            request.ref.revision,
            path=request.path,
            record=self._record(request.ref.repo),
        )
        async for offset, data in self._threads.iterate(read_chunks(Path(found["file"]))):
            yield hub_pb2.DownloadFileResponse(offset=offset, crc32=crc32(data), data=data)

    async def SnapshotRepo(self, request: hub_pb2.SnapshotRepoRequest, context: Any) -> hub_pb2.SnapshotRepoResponse:
        if not is_hub_name(request.ref.repo):
            return await self._local.SnapshotRepo(request, context)
        check_revision(request.ref.revision, field="ref.revision")
        found = await self._calls.transfer(
            "snapshot",
            request.ref.repo,
            request.ref.revision,
            allow_patterns=list(request.allow_patterns),
            ignore_patterns=list(request.ignore_patterns),
            record=self._record(request.ref.repo),
        )
        return hub_pb2.SnapshotRepoResponse(
            local_path=found["folder"], ref=hub_pb2.RepoRef(repo=request.ref.repo, revision=found["commit"])
        )

    async def UploadFile(
        self, request_iterator: AsyncIterator[hub_pb2.UploadFileRequest], context: Any
    ) -> hub_pb2.UploadFileResponse:
        first = await anext(request_iterator, None)
        requests = _with_first(first, request_iterator)
        if first is None or not is_hub_name(first.header.ref.repo):
            return await self._local.UploadFile(requests, context)
        async with self._staging.file() as staged:
            upload = Upload(staged, self._check_header)
            async for request in requests:
                await self._threads.run(upload.take, request)
            header = await self._threads.run(upload.finish)
            path = await self._threads.run(staged.finish)
            stored = await self._calls.transfer(
                "upload",
                header.ref.repo,
                header.ref.revision,
                path=header.path,
                file=str(path),
                sha256=header.sha256,
            )
        return hub_pb2.UploadFileResponse(ref=hub_pb2.RepoRef(repo=header.ref.repo, revision=stored["commit"]))

    async def _describe(self, ref: hub_pb2.RepoRef) -> dict[str, Any]:
        check_revision(ref.revision, field="ref.revision")
        return await self._calls.ask("describe", ref.repo, ref.revision)

    def _check_header(self, header: hub_pb2.UploadFileHeader) -> None:
        check_path(header, self._folder)
        check_revision(header.ref.revision, field="header.ref.revision")

    def _record(self, repo: str) -> str:
        """Where it is remembered which files of a repository have been hashed."""
        return str(self._folder / "verified" / f"{repo.replace('/', '--')}.json")


async def _with_first(
    first: hub_pb2.UploadFileRequest | None, rest: AsyncIterator[hub_pb2.UploadFileRequest]
) -> AsyncIterator[hub_pb2.UploadFileRequest]:
    if first is not None:
        yield first
        async for request in rest:
            yield request
