"""Metrics stores, registries and hubs with a defect: the built-in ones, changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from crucible.port.hub.v1 import hub_pb2
from crucible.port.metrics.v1 import metrics_pb2
from crucible.port.registry.v1 import registry_pb2
from crucible_adapters.hub.local import LocalHub
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_adapters.registry.sqlite import SqliteModelRegistry
from crucible_kit.errors import KitchenError
from tests.conformance.mutants.mutant import adapter_mutant, changed


class RepeatsCount(SqliteMetricsStore):
    number = 1000

    async def RecordMetrics(self, request: Any, context: Any) -> metrics_pb2.RecordMetricsResponse:
        self.number += 1
        return await super().RecordMetrics(changed(request, batch_key=self.number), context)


class AttemptsAreIgnored(SqliteMetricsStore):
    async def RecordMetrics(self, request: Any, context: Any) -> metrics_pb2.RecordMetricsResponse:
        return await super().RecordMetrics(changed(request, attempt=1), context)


class RunsAreOne(SqliteMetricsStore):
    async def RecordMetrics(self, request: Any, context: Any) -> metrics_pb2.RecordMetricsResponse:
        key = request.batch_key + sum(request.run_id.encode()) * 1000
        return await super().RecordMetrics(changed(request, run_id="one", batch_key=key), context)

    async def QueryMetrics(self, request: Any, context: Any) -> metrics_pb2.QueryMetricsResponse:
        return await super().QueryMetrics(changed(request, run_id="one"), context)


class NoNans(SqliteMetricsStore):
    async def RecordMetrics(self, request: Any, context: Any) -> metrics_pb2.RecordMetricsResponse:
        copy = changed(request)
        for point in copy.points:
            point.value = point.value if point.value == point.value else 0.0
        return await super().RecordMetrics(copy, context)


class FallingSteps(SqliteMetricsStore):
    async def QueryMetrics(self, request: Any, context: Any) -> metrics_pb2.QueryMetricsResponse:
        response = await super().QueryMetrics(request, context)
        points = list(response.points)[::-1]
        return metrics_pb2.QueryMetricsResponse(points=points, next_page_token=response.next_page_token)


class OpenEnd(SqliteMetricsStore):
    async def QueryMetrics(self, request: Any, context: Any) -> metrics_pb2.QueryMetricsResponse:
        if request.HasField("max_step") and request.max_step:
            request = changed(request, max_step=request.max_step - 1)
        return await super().QueryMetrics(request, context)


class AnyMetricsToken(SqliteMetricsStore):
    async def QueryMetrics(self, request: Any, context: Any) -> metrics_pb2.QueryMetricsResponse:
        try:
            return await super().QueryMetrics(request, context)
        except KitchenError:
            return await super().QueryMetrics(changed(request, page_token=""), context)


class FiftyAtMost(SqliteMetricsStore):
    """A page without a token, however many there are."""

    async def QueryMetrics(self, request: Any, context: Any) -> metrics_pb2.QueryMetricsResponse:
        response = await super().QueryMetrics(request, context)
        return metrics_pb2.QueryMetricsResponse(points=response.points)


class NewestFirst(SqliteMetricsStore):
    async def GetLatestMetrics(self, request: Any, context: Any) -> metrics_pb2.GetLatestMetricsResponse:
        response = await super().GetLatestMetrics(request, context)
        return metrics_pb2.GetLatestMetricsResponse(points=list(response.points)[::-1])


class NamesUnsorted(SqliteMetricsStore):
    async def ListMetricNames(self, request: Any, context: Any) -> metrics_pb2.ListMetricNamesResponse:
        names = (await super().ListMetricNames(request, context)).names
        return metrics_pb2.ListMetricNamesResponse(names=sorted(names, key=str.casefold))


class VersionsAreReplaced(SqliteModelRegistry):
    async def RegisterVersion(self, request: Any, context: Any) -> registry_pb2.RegisterVersionResponse:
        try:
            return await super().RegisterVersion(request, context)
        except KitchenError as error:
            if error.reason != "VERSION_EXISTS":
                raise
            found = await self.GetVersion(registry_pb2.GetVersionRequest(run_id=request.version.run_id), context)
            return registry_pb2.RegisterVersionResponse(version=found.version)


class CyclesAreLeftOut(SqliteModelRegistry):
    async def RegisterVersion(self, request: Any, context: Any) -> registry_pb2.RegisterVersionResponse:
        try:
            return await super().RegisterVersion(request, context)
        except KitchenError as error:
            if error.reason != "LINEAGE_CYCLE":
                raise
            bare = registry_pb2.RegisterVersionRequest(version=request.version)
            return await super().RegisterVersion(bare, context)


class GivenIdsAreIgnored(SqliteModelRegistry):
    async def RegisterVersion(self, request: Any, context: Any) -> registry_pb2.RegisterVersionResponse:
        copy = changed(request)
        copy.version.version_id = ""
        copy.version.ClearField("create_time")
        return await super().RegisterVersion(copy, context)


class OutOfTheArchive(SqliteModelRegistry):
    async def PromoteVersion(self, request: Any, context: Any) -> registry_pb2.PromoteVersionResponse:
        try:
            return await super().PromoteVersion(request, context)
        except KitchenError as error:
            if error.reason != "VERSION_ARCHIVED":
                raise
            found = await self.GetVersion(registry_pb2.GetVersionRequest(version_id=request.version_id), context)
            return registry_pb2.PromoteVersionResponse(version=changed(found.version, stage=request.stage))


class ArtifactsAreReplaced(SqliteModelRegistry):
    async def AddArtifact(self, request: Any, context: Any) -> registry_pb2.AddArtifactResponse:
        try:
            return await super().AddArtifact(request, context)
        except KitchenError as error:
            if error.reason != "ARTIFACT_EXISTS":
                raise
            found = await self.GetVersion(registry_pb2.GetVersionRequest(version_id=request.version_id), context)
            return registry_pb2.AddArtifactResponse(version=found.version)


class OldestFirst(SqliteModelRegistry):
    async def ListVersions(self, request: Any, context: Any) -> registry_pb2.ListVersionsResponse:
        response = await super().ListVersions(request, context)
        versions = list(response.versions)[::-1]
        return registry_pb2.ListVersionsResponse(versions=versions, next_page_token=response.next_page_token)


class StageFilterIsIgnored(SqliteModelRegistry):
    async def ListVersions(self, request: Any, context: Any) -> registry_pb2.ListVersionsResponse:
        return await super().ListVersions(changed(request, stage=0), context)


class DepthIsIgnored(SqliteModelRegistry):
    async def GetLineage(self, request: Any, context: Any) -> registry_pb2.GetLineageResponse:
        return await super().GetLineage(changed(request, max_depth=0), context)


class OnlyAncestors(SqliteModelRegistry):
    async def GetLineage(self, request: Any, context: Any) -> registry_pb2.GetLineageResponse:
        return await super().GetLineage(changed(request, direction=0), context)


class RevisionsAreIgnored(LocalHub):
    def _find(self, ref: hub_pb2.RepoRef) -> Any:
        return super()._find(hub_pb2.RepoRef(repo=ref.repo))


class UploadsUnchecked(LocalHub):
    async def UploadFile(self, request_iterator: Any, context: Any) -> hub_pb2.UploadFileResponse:
        try:
            return await super().UploadFile(request_iterator, context)
        except KitchenError as error:
            if error.reason != "HUB_FILE_CORRUPT":
                raise
            return hub_pb2.UploadFileResponse()


class DownloadsLoseCrc(LocalHub):
    async def DownloadFile(self, request: Any, context: Any) -> AsyncIterator[hub_pb2.DownloadFileResponse]:
        async for response in super().DownloadFile(request, context):
            yield changed(response, crc32=0)


class MissingFilesAreEmpty(LocalHub):
    async def DownloadFile(self, request: Any, context: Any) -> AsyncIterator[hub_pb2.DownloadFileResponse]:
        try:
            async for response in super().DownloadFile(request, context):
                yield response
        except KitchenError as error:
            if error.reason != "HUB_FILE_NOT_FOUND":
                raise
            yield hub_pb2.DownloadFileResponse()


class FilesReversed(LocalHub):
    async def ListRepoFiles(self, request: Any, context: Any) -> hub_pb2.ListRepoFilesResponse:
        response = await super().ListRepoFiles(request, context)
        files = list(response.files)[::-1]
        return hub_pb2.ListRepoFilesResponse(files=files, next_page_token=response.next_page_token)


class CountsNothing(LocalHub):
    async def GetRepoInfo(self, request: Any, context: Any) -> hub_pb2.GetRepoInfoResponse:
        return changed(await super().GetRepoInfo(request, context), num_files=0)


class RelativeSnapshots(LocalHub):
    async def SnapshotRepo(self, request: Any, context: Any) -> hub_pb2.SnapshotRepoResponse:
        return changed(await super().SnapshotRepo(request, context), local_path="snapshots/model")


STORE_MUTANTS = (
    adapter_mutant(RepeatsCount, "repeated batches count", "MET-RECORD-02", others=1),
    adapter_mutant(AttemptsAreIgnored, "attempts are ignored", "MET-RECORD-03"),
    adapter_mutant(RunsAreOne, "runs are mixed", "MET-RECORD-01", others=8),
    adapter_mutant(NoNans, "NaN becomes 0", "MET-RECORD-04"),
    adapter_mutant(FallingSteps, "steps fall", "MET-RECORD-01", others=5),
    adapter_mutant(OpenEnd, "the last step is left out", "MET-QUERY-01", others=1),
    adapter_mutant(FiftyAtMost, "later pages are lost", "MET-QUERY-02", others=1),
    adapter_mutant(AnyMetricsToken, "any page token is taken", "MET-QUERY-03"),
    adapter_mutant(NewestFirst, "newest values are not sorted", "MET-LATEST-01", others=1),
    adapter_mutant(NamesUnsorted, "names ignore case", "MET-NAMES-01"),
    adapter_mutant(VersionsAreReplaced, "a run has several contents", "REG-VERSION-02"),
    adapter_mutant(GivenIdsAreIgnored, "given ids are ignored", "REG-VERSION-03"),
    adapter_mutant(OutOfTheArchive, "the archive can be left", "REG-STAGE-01"),
    adapter_mutant(ArtifactsAreReplaced, "artifacts are replaced", "REG-ARTIFACT-01"),
    adapter_mutant(OldestFirst, "versions come oldest first", "REG-LIST-01", others=1),
    adapter_mutant(StageFilterIsIgnored, "the stage is ignored", "REG-LIST-01"),
    adapter_mutant(DepthIsIgnored, "max_depth is ignored", "REG-LINEAGE-01"),
    adapter_mutant(OnlyAncestors, "descendants are ancestors", "REG-LINEAGE-01"),
    adapter_mutant(CyclesAreLeftOut, "cycles are left out", "REG-LINEAGE-02"),
    adapter_mutant(RevisionsAreIgnored, "revisions are ignored", "HUB-INFO-02"),
    adapter_mutant(CountsNothing, "files are not counted", "HUB-INFO-01"),
    adapter_mutant(FilesReversed, "files are not sorted", "HUB-LIST-01"),
    adapter_mutant(DownloadsLoseCrc, "chunks have no CRC", "HUB-DOWNLOAD-01", others=2),
    adapter_mutant(MissingFilesAreEmpty, "a missing file is empty", "HUB-DOWNLOAD-02", others=3),
    adapter_mutant(RelativeSnapshots, "snapshots lie at a relative path", "HUB-SNAPSHOT-01"),
    adapter_mutant(UploadsUnchecked, "uploads are not verified", "HUB-UPLOAD-02"),
)
