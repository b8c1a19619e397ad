"""The rules of the ports without sessions: what hosted runs wrote stays theirs, and names are resolved as for runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from crucible.port.blob.v1 import blob_pb2
from crucible.port.hub.v1 import hub_pb2
from crucible.port.metrics.v1 import metrics_pb2
from crucible.port.registry.v1 import registry_pb2
from crucible_kit.errors import PermissionDeniedError, field_error
from crucible_kitchen.relay.call import Call
from crucible_kitchen.relay.models import Models

RUNS_FOLDER = "runs"
"""Of the blobs: what hosted runs saved."""
CLIENT_RUNS = "clients/"
"""How the run ids begin under which clients write metrics and versions; a hosted run's has no slash."""


class BlobRules:
    """Each method is the rule of the call of its name."""

    async def WriteBlob(
        self, call: Call, requests: AsyncIterator[blob_pb2.WriteBlobRequest]
    ) -> blob_pb2.WriteBlobResponse:
        async def checked() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
            async for request in requests:
                if request.HasField("header"):
                    _check_key(request.header.key, field="header.key")
                yield request

        return await call.send(checked())

    async def DeleteBlob(self, call: Call, request: blob_pb2.DeleteBlobRequest) -> blob_pb2.DeleteBlobResponse:
        _check_key(request.key, field="key")
        return await call.send(request)


def _check_key(key: str, *, field: str) -> None:
    # Some file systems take Runs for runs.
    if key.partition("/")[0].casefold() == RUNS_FOLDER:
        raise PermissionDeniedError(
            f"{field}: {key!r} lies in {RUNS_FOLDER}/, which only hosted runs write: choose another key",
            reason="BLOB_OF_RUN",
            metadata={"field": field, "key": key},
        )


class MetricsRules:
    """Each method is the rule of the call of its name."""

    async def RecordMetrics(
        self, call: Call, request: metrics_pb2.RecordMetricsRequest
    ) -> metrics_pb2.RecordMetricsResponse:
        _check_run(request.run_id, field="run_id")
        return await call.send(request)


class RegistryRules:
    """Each method is the rule of the call of its name."""

    async def RegisterVersion(
        self, call: Call, request: registry_pb2.RegisterVersionRequest
    ) -> registry_pb2.RegisterVersionResponse:
        _check_run(request.version.run_id, field="version.run_id")
        return await call.send(request)


def _check_run(run_id: str, *, field: str) -> None:
    """A hosted run of that name, even one that comes later, would find its place taken and fail."""
    if not run_id.startswith(CLIENT_RUNS):
        raise PermissionDeniedError(
            f"{field}: {run_id!r} can be a hosted run, whose records only the server writes: "
            f"begin your own with {CLIENT_RUNS}, such as {CLIENT_RUNS}my-run",
            reason="RUN_OF_SERVER",
            metadata={"field": field, "run_id": run_id},
        )


class HubRules:
    """Each method is the rule of the call of its name.

    Args:
        hands_out_folders: whether files of absolute folders may be read. Only where the server's read roots say which:
            anybody on the machine may reach a server on loopback.
    """

    def __init__(self, *, hands_out_folders: bool) -> None:
        self._hands_out_folders = hands_out_folders

    async def ListRepoFiles(self, call: Call, request: hub_pb2.ListRepoFilesRequest) -> hub_pb2.ListRepoFilesResponse:
        self._check_repo(request.ref.repo)
        return await call.send(request)

    def DownloadFile(
        self, call: Call, request: hub_pb2.DownloadFileRequest
    ) -> AsyncIterator[hub_pb2.DownloadFileResponse]:
        self._check_repo(request.ref.repo)
        return call.stream(request)

    def _check_repo(self, repo: str) -> None:
        if repo.startswith("/") and not self._hands_out_folders:
            raise field_error(
                "ref.repo",
                f"{repo!r} is a folder, and this server hands out files of folders only below its --read-roots, "
                "of which it has none",
                reason="PATH_NOT_ALLOWED",
            )


class TokenizerRules:
    """Each method is the rule of the call of its name."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def _named(self, call: Call, request: Any) -> Any:
        request.tokenizer = await self._models.tokenizer_folder(request.tokenizer)
        return await call.send(request)

    GetTokenizerInfo = EncodeBatch = DecodeBatch = ApplyChatTemplate = _named
