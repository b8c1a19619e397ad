"""HubClient over folders of this machine: builtin models, absolute folders, and owner/name below a root. No network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import Field

from crucible.port.hub.v1 import hub_pb2, hub_pb2_grpc
from crucible_adapters.builtin import weights as builtin_models
from crucible_adapters.hub.contents import ContentReader, Contents
from crucible_adapters.hub.names import is_hub_name
from crucible_adapters.hub.upload import Upload, check_path, place
from crucible_adapters.paths import check_relative
from crucible_adapters.staging import StagingArea
from crucible_adapters.threads import Threads
from crucible_kit import paging
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.chunks import crc32, read_chunks
from crucible_kit.errors import FailedPreconditionError, NotFoundError, field_error

_THREADS = 4
_BUILTIN = "builtin:"


class LocalHubOptions(AdapterOptions):
    """Where the repositories are."""

    root: Path | None = Field(
        default=None, description="Folder of owner/name folders; default: hub in the data folder."
    )


class LocalHub(hub_pb2_grpc.HubServiceServicer):
    """Repositories as folders."""

    description = AdapterDescription(
        name="local-hub", port="hub", capabilities=("hub.upload",), options=LocalHubOptions
    )

    def __init__(self, options: LocalHubOptions, context: AdapterContext) -> None:
        self._context = context
        self._root = (options.root or context.data_dir / "hub").resolve()
        self._builtin_root = (context.data_dir / "builtin").resolve()
        self._builtin_folders: dict[str, Path] = {}
        self._reader = ContentReader()
        self._threads = Threads("hub", _THREADS)
        self._staging = StagingArea(self._root / ".staging", self._threads)

    async def close(self) -> None:
        """Ends the threads and removes unfinished uploads."""
        await self._threads.close()
        await self._staging.close()

    async def GetRepoInfo(self, request: hub_pb2.GetRepoInfoRequest, context: Any) -> hub_pb2.GetRepoInfoResponse:
        _, contents = await self._threads.run(self._find, request.ref)
        response = hub_pb2.GetRepoInfoResponse(
            ref=_resolved(request.ref, contents),
            num_files=len(contents.files),
            size_bytes=sum(file.size_bytes for file in contents.files),
        )
        if contents.files:
            time = Timestamp()
            time.FromNanoseconds(contents.mtime_ns)
            response.update_time.CopyFrom(time)
        return response

    async def ListRepoFiles(self, request: hub_pb2.ListRepoFilesRequest, context: Any) -> hub_pb2.ListRepoFilesResponse:
        size = paging.page_size(request.page_size)
        scope = f"ListRepoFiles\0{request.ref.repo}\0{request.ref.revision}"
        position = paging.decode(request.page_token, scope)
        _, contents = await self._threads.run(self._find, request.ref)
        rest = [file for file in contents.files if not position or file.path > position[0]]
        response = hub_pb2.ListRepoFilesResponse(
            files=[hub_pb2.RepoFile(path=f.path, size_bytes=f.size_bytes, sha256=f.sha256) for f in rest[:size]]
        )
        if len(rest) > size:
            response.next_page_token = paging.encode([rest[size - 1].path], scope)
        return response

    async def DownloadFile(
        self, request: hub_pb2.DownloadFileRequest, context: Any
    ) -> AsyncIterator[hub_pb2.DownloadFileResponse]:
        async for response in self._threads.iterate(self._download(request)):
            yield response

    def _download(self, request: hub_pb2.DownloadFileRequest) -> Iterator[hub_pb2.DownloadFileResponse]:
        folder, contents = self._find(request.ref)
        check_relative(request.path, folder, field="path")
        if all(file.path != request.path for file in contents.files):
            raise NotFoundError(
                f"{request.ref.repo} has no file {request.path!r}: ListRepoFiles lists those it has",
                reason="HUB_FILE_NOT_FOUND",
                metadata={"repo": request.ref.repo, "path": request.path},
            )
        path = folder / request.path
        if request.ref.repo.startswith("/"):
            path = self._context.readable(str(path), field="path")  # a link may lead out of the allowed folders
        for offset, data in read_chunks(path):
            yield hub_pb2.DownloadFileResponse(offset=offset, crc32=crc32(data), data=data)

    async def SnapshotRepo(self, request: hub_pb2.SnapshotRepoRequest, context: Any) -> hub_pb2.SnapshotRepoResponse:
        # The files are here: whatever the patterns leave out does not have to be taken away.
        folder, contents = await self._threads.run(self._find, request.ref)
        return hub_pb2.SnapshotRepoResponse(local_path=str(folder), ref=_resolved(request.ref, contents))

    async def UploadFile(
        self, request_iterator: AsyncIterator[hub_pb2.UploadFileRequest], context: Any
    ) -> hub_pb2.UploadFileResponse:
        async with self._staging.file() as staged:
            upload = Upload(staged, self._writable)
            async for request in request_iterator:
                await self._threads.run(upload.take, request)
            header = await self._threads.run(upload.finish)
            await self._threads.run(lambda: place(staged, self._writable(header), header.path))
            ref = hub_pb2.RepoRef(repo=header.ref.repo)
        _, contents = await self._threads.run(self._find, ref)
        return hub_pb2.UploadFileResponse(ref=_resolved(ref, contents))

    def _writable(self, header: hub_pb2.UploadFileHeader) -> Path:
        """Where an upload goes."""
        repo = header.ref.repo
        if repo.startswith((_BUILTIN, "/")):
            raise FailedPreconditionError(
                f"{repo} can only be read: upload to an owner/name of this hub",
                reason="REPO_READ_ONLY",
                metadata={"repo": repo},
            )
        folder = self._named(repo, field="header.ref.repo")
        target = check_path(header, folder)
        if header.ref.revision:
            if not folder.is_dir():
                raise _revision_not_found(header.ref, "")
            self._find(header.ref)
        return target

    def _find(self, ref: hub_pb2.RepoRef) -> tuple[Path, Contents]:
        """A repository's folder and what it holds. Raises NOT_FOUND REPO_NOT_FOUND or REVISION_NOT_FOUND."""
        folder = self._folder(ref.repo)
        try:
            contents = self._reader.read(folder)
        except OSError as error:
            raise _repo_not_found(ref.repo, f"{error.filename or folder} can't be read: {error.strerror}") from error
        if ref.revision and ref.revision != contents.revision:
            raise _revision_not_found(ref, contents.revision)
        return folder, contents

    def _folder(self, repo: str) -> Path:
        if repo.startswith(_BUILTIN):
            return self._builtin(repo)
        if repo.startswith("/"):
            folder = self._context.readable(repo, field="ref.repo")
            if not folder.is_dir():
                raise _repo_not_found(repo, "there is no such folder on this machine")
            return folder
        folder = self._named(repo, field="ref.repo")
        if not folder.is_dir():
            raise _repo_not_found(
                repo,
                f"the local hub has no network and looks only in {self._root}: put the model's folder there, give an "
                "absolute folder or builtin:NAME, or map the port hub to builtin:huggingface (pip install "
                "'crucible-kitchen[hf]')",
            )
        return folder

    def _named(self, repo: str, *, field: str) -> Path:
        if not is_hub_name(repo):
            raise field_error(field, f"{repo!r} must be builtin:NAME, an absolute folder, or owner/name")
        return self._root / repo

    def _builtin(self, repo: str) -> Path:
        name = repo.removeprefix(_BUILTIN)
        folder = self._builtin_folders.get(name)
        if folder is None or not folder.is_dir():
            try:
                content_hash = builtin_models.content_hash(name)
            except ValueError as error:
                raise _repo_not_found(repo, str(error)) from error
            # Named by what it holds, so that another release's files lie beside it.
            folder = self._builtin_root / f"{name}-{content_hash[:12]}"
            try:
                builtin_models.materialise(name, folder)
            except FileExistsError as error:
                raise FailedPreconditionError(
                    str(error), reason="BUILTIN_DAMAGED", metadata={"repo": repo, "folder": folder}
                ) from error
            self._builtin_folders[name] = folder
        return folder


def _resolved(ref: hub_pb2.RepoRef, contents: Contents) -> hub_pb2.RepoRef:
    return hub_pb2.RepoRef(repo=ref.repo, revision=contents.revision)


def _repo_not_found(repo: str, why: str) -> NotFoundError:
    return NotFoundError(f"repository {repo!r}: {why}", reason="REPO_NOT_FOUND", metadata={"repo": repo})


def _revision_not_found(ref: hub_pb2.RepoRef, present: str) -> NotFoundError:
    has = f"has only {present}" if present else "does not exist yet"
    return NotFoundError(
        f"repository {ref.repo!r} {has}, not revision {ref.revision!r}: leave revision empty",
        reason="REVISION_NOT_FOUND",
        metadata={"repo": ref.repo, "revision": ref.revision, "present": present},
    )
