"""The fake of the hub port: repositories in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from safetensors.numpy import save

from crucible.port.hub.v1 import hub_pb2, hub_pb2_grpc
from crucible_adapters.fakes.fixed import MODELS, fixed_time
from crucible_adapters.fakes.memory import MemoryFile
from crucible_adapters.hub.names import is_hub_name
from crucible_adapters.hub.upload import Upload, check_path
from crucible_adapters.paths import check_relative
from crucible_kit import paging
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.chunks import CHUNK_BYTES, atomic_file, canonical_json, crc32
from crucible_kit.determinism import derive_seed
from crucible_kit.errors import FailedPreconditionError, NotFoundError, field_error

_BUILTIN = "builtin:"
_ROOT = Path("/")


class FakeHubOptions(AdapterOptions):
    """Which repositories there are."""

    seed: int = Field(default=0, ge=0, description="Seed of the files.")
    repos: tuple[str, ...] = Field(
        default=MODELS, description="Repositories that are there from the start, each with a few small files."
    )


class FakeHub(hub_pb2_grpc.HubServiceServicer):
    """Repositories as dictionaries; it knows no folders. A snapshot is written to the data folder."""

    description = AdapterDescription(name="fake-hub", port="hub", capabilities=("hub.upload",), options=FakeHubOptions)

    def __init__(self, options: FakeHubOptions, context: AdapterContext) -> None:
        self._folder = context.data_dir.resolve() / "fake-hub"
        self._repos = {name: _files(name, options.seed) for name in options.repos}

    async def close(self) -> None:
        """Forgets the repositories."""
        self._repos.clear()

    async def GetRepoInfo(self, request: hub_pb2.GetRepoInfoRequest, context: Any) -> hub_pb2.GetRepoInfoResponse:
        files = self._find(request.ref)
        return hub_pb2.GetRepoInfoResponse(
            ref=_resolved(request.ref.repo, files),
            num_files=len(files),
            size_bytes=sum(map(len, files.values())),
            update_time=fixed_time(),
        )

    async def ListRepoFiles(self, request: hub_pb2.ListRepoFilesRequest, context: Any) -> hub_pb2.ListRepoFilesResponse:
        size = paging.page_size(request.page_size)
        scope = f"ListRepoFiles\0{request.ref.repo}\0{request.ref.revision}"
        position = paging.decode(request.page_token, scope)
        files = self._find(request.ref)
        paths = [path for path in sorted(files) if not position or path > position[0]]
        return hub_pb2.ListRepoFilesResponse(
            files=[
                hub_pb2.RepoFile(path=path, size_bytes=len(files[path]), sha256=_sha256(files[path]))
                for path in paths[:size]
            ],
            next_page_token=paging.encode([paths[size - 1]], scope) if len(paths) > size else "",
        )

    async def DownloadFile(
        self, request: hub_pb2.DownloadFileRequest, context: Any
    ) -> AsyncIterator[hub_pb2.DownloadFileResponse]:
        files = self._find(request.ref)
        check_relative(request.path, _ROOT, field="path")
        if request.path not in files:
            raise NotFoundError(
                f"{request.ref.repo} has no file {request.path!r}: ListRepoFiles lists those it has",
                reason="HUB_FILE_NOT_FOUND",
                metadata={"repo": request.ref.repo, "path": request.path},
            )
        content = files[request.path]
        for offset in range(0, len(content) or 1, CHUNK_BYTES):
            data = content[offset : offset + CHUNK_BYTES]
            yield hub_pb2.DownloadFileResponse(offset=offset, crc32=crc32(data), data=data)

    async def SnapshotRepo(self, request: hub_pb2.SnapshotRepoRequest, context: Any) -> hub_pb2.SnapshotRepoResponse:
        repo, files = request.ref.repo, self._find(request.ref)
        ref = _resolved(repo, files)
        folder = self._folder / f"{repo.replace('/', '--').replace(':', '--')}-{ref.revision[:12]}"
        wanted = {path: data for path, data in files.items() if _matches(path, request)}
        await asyncio.to_thread(_write, folder, wanted)
        return hub_pb2.SnapshotRepoResponse(local_path=str(folder), ref=ref)

    async def UploadFile(
        self, request_iterator: AsyncIterator[hub_pb2.UploadFileRequest], context: Any
    ) -> hub_pb2.UploadFileResponse:
        received = MemoryFile()
        upload = Upload(received, self._check_upload)
        async for request in request_iterator:
            upload.take(request)
        header = upload.finish()
        # Again: another upload may have come between.
        self._check_upload(header)
        files = self._repos.setdefault(header.ref.repo, {})
        files[header.path] = received.content
        return hub_pb2.UploadFileResponse(ref=_resolved(header.ref.repo, files))

    def _check_upload(self, header: hub_pb2.UploadFileHeader) -> None:
        repo = header.ref.repo
        if repo.startswith((_BUILTIN, "/")):
            raise FailedPreconditionError(
                f"{repo} can only be read: upload to an owner/name of this hub",
                reason="REPO_READ_ONLY",
                metadata={"repo": repo},
            )
        if not is_hub_name(repo):
            raise field_error("header.ref.repo", f"{repo!r} must be owner/name")
        check_path(header, _ROOT)
        files = self._repos.get(repo, {})
        if any(path.startswith(f"{header.path}/") or header.path.startswith(f"{path}/") for path in files):
            raise field_error("header.path", f"{header.path!r} can't be a file and a folder: choose another name")
        if header.ref.revision and header.ref.revision != _revision(files):
            raise _revision_not_found(header.ref)

    def _find(self, ref: hub_pb2.RepoRef) -> dict[str, bytes]:
        """A repository's files. Raises NOT_FOUND REPO_NOT_FOUND or REVISION_NOT_FOUND."""
        if not is_hub_name(ref.repo) and not ref.repo.startswith((_BUILTIN, "/")):
            raise field_error("ref.repo", f"{ref.repo!r} must be builtin:NAME, an absolute folder, or owner/name")
        files = self._repos.get(ref.repo)
        if files is None:
            raise NotFoundError(
                f"repository {ref.repo!r}: there are only {', '.join(sorted(self._repos))}: see the option repos",
                reason="REPO_NOT_FOUND",
                metadata={"repo": ref.repo},
            )
        if ref.revision and ref.revision != _revision(files):
            raise _revision_not_found(ref)
        return files


def _files(name: str, seed: int) -> dict[str, bytes]:
    """A model folder's files, in small."""
    weight = np.random.default_rng(derive_seed(seed, "repo", name)).standard_normal(64, dtype=np.float32)
    return {
        "config.json": canonical_json({"model_type": "crucible_toy", "name": name}),
        "model.safetensors": save({"weight": weight}),
        "tokenizer.json": canonical_json({"type": "bytes"}),
    }


def _revision(files: dict[str, bytes]) -> str:
    lines = "".join(f"{_sha256(data)}  {path}\n" for path, data in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _resolved(repo: str, files: dict[str, bytes]) -> hub_pb2.RepoRef:
    return hub_pb2.RepoRef(repo=repo, revision=_revision(files))


def _matches(path: str, request: hub_pb2.SnapshotRepoRequest) -> bool:
    allowed = not request.allow_patterns or any(fnmatchcase(path, each) for each in request.allow_patterns)
    return allowed and not any(fnmatchcase(path, each) for each in request.ignore_patterns)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        # Named by its content: what is there is right.
        if not (folder / path).exists():
            with atomic_file(folder / path) as file:
                file.write(data)


def _revision_not_found(ref: hub_pb2.RepoRef) -> NotFoundError:
    return NotFoundError(
        f"repository {ref.repo!r} does not have the revision {ref.revision!r}: leave revision empty",
        reason="REVISION_NOT_FOUND",
        metadata={"repo": ref.repo, "revision": ref.revision},
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
