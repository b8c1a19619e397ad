"""Metrics stores, registries, hubs, tokenizers and datasets with a defect: the built-in ones, changed."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from crucible.port.dataset.v1 import dataset_pb2
from crucible.port.hub.v1 import hub_pb2
from crucible.port.metrics.v1 import metrics_pb2
from crucible.port.registry.v1 import registry_pb2
from crucible.port.tokenizer.v1 import tokenizer_pb2
from crucible_adapters.dataset.local import LocalDatasets
from crucible_adapters.hub.local import LocalHub
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_adapters.registry.sqlite import SqliteModelRegistry
from crucible_adapters.tokenizer.tokenizers_folder import TokenizersFolder
from crucible_kit.adapter import AdapterContext
from crucible_kit.channel import Channel
from crucible_kit.errors import KitchenError
from crucible_kit.tensors import pack_tokens, unpack_tokens
from tests.conformance.bindings import to_object
from tests.conformance.mutants.mutant import Mutant


def changed(message: Any, **fields: Any) -> Any:
    """A copy of a message with other fields."""
    copy = type(message)()
    copy.CopyFrom(message)
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy


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


class AlwaysAddsTokens(TokenizersFolder):
    async def EncodeBatch(self, request: Any, context: Any) -> tokenizer_pb2.EncodeBatchResponse:
        response = await super().EncodeBatch(request, context)
        for sequence in response.sequences:
            sequence.tokens_int32 = pack_tokens([0]) + sequence.tokens_int32
        return response


class TextsReversed(TokenizersFolder):
    async def EncodeBatch(self, request: Any, context: Any) -> tokenizer_pb2.EncodeBatchResponse:
        response = await super().EncodeBatch(request, context)
        return tokenizer_pb2.EncodeBatchResponse(sequences=list(response.sequences)[::-1])


class BigEndianTokens(TokenizersFolder):
    async def EncodeBatch(self, request: Any, context: Any) -> tokenizer_pb2.EncodeBatchResponse:
        response = await super().EncodeBatch(request, context)
        for sequence in response.sequences:
            sequence.tokens_int32 = unpack_tokens(sequence.tokens_int32).astype(">i4").tobytes()
        return response


class StripsTexts(TokenizersFolder):
    async def DecodeBatch(self, request: Any, context: Any) -> tokenizer_pb2.DecodeBatchResponse:
        response = await super().DecodeBatch(request, context)
        return tokenizer_pb2.DecodeBatchResponse(texts=[text.replace("\n\n  ", "\n") for text in response.texts])


class KeepsSpecialTokens(TokenizersFolder):
    async def DecodeBatch(self, request: Any, context: Any) -> tokenizer_pb2.DecodeBatchResponse:
        return await super().DecodeBatch(changed(request, skip_special_tokens=False), context)


class BadIdsAreSkipped(TokenizersFolder):
    async def DecodeBatch(self, request: Any, context: Any) -> tokenizer_pb2.DecodeBatchResponse:
        copy = changed(request)
        for sequence in copy.sequences:
            whole = unpack_tokens(sequence.tokens_int32[: len(sequence.tokens_int32) // 4 * 4])
            sequence.tokens_int32 = pack_tokens(whole[whole >= 0])
        return await super().DecodeBatch(copy, context)


class TrainsOnEverything(TokenizersFolder):
    async def ApplyChatTemplate(self, request: Any, context: Any) -> tokenizer_pb2.ApplyChatTemplateResponse:
        response = await super().ApplyChatTemplate(request, context)
        for rendered in response.rendered:
            rendered.train_mask_uint8 = b"\x01" * len(rendered.train_mask_uint8)
        return response


class ShiftedMasks(TokenizersFolder):
    async def ApplyChatTemplate(self, request: Any, context: Any) -> tokenizer_pb2.ApplyChatTemplateResponse:
        response = await super().ApplyChatTemplate(request, context)
        for rendered in response.rendered:
            rendered.train_mask_uint8 = rendered.train_mask_uint8[1:]
        return response


class NoGenerationPrompt(TokenizersFolder):
    async def ApplyChatTemplate(self, request: Any, context: Any) -> tokenizer_pb2.ApplyChatTemplateResponse:
        return await super().ApplyChatTemplate(changed(request, add_generation_prompt=False), context)


class OneFingerprint(LocalDatasets):
    async def OpenDataset(self, request: Any, context: Any) -> dataset_pb2.OpenDatasetResponse:
        response = changed(await super().OpenDataset(request, context))
        response.dataset.fingerprint = "0" * 64
        return response


class OtherShuffles(LocalDatasets):
    async def OpenDataset(self, request: Any, context: Any) -> dataset_pb2.OpenDatasetResponse:
        copy = changed(request)
        for transform in copy.transforms:
            if transform.WhichOneof("transform") == "shuffle_seed":
                transform.shuffle_seed += 1
        return await super().OpenDataset(copy, context)


class TransformsReversed(LocalDatasets):
    async def OpenDataset(self, request: Any, context: Any) -> dataset_pb2.OpenDatasetResponse:
        copy = dataset_pb2.OpenDatasetRequest(source=request.source, transforms=list(request.transforms)[::-1])
        return await super().OpenDataset(copy, context)


class StreamingIsIgnored(LocalDatasets):
    async def OpenDataset(self, request: Any, context: Any) -> dataset_pb2.OpenDatasetResponse:
        return await super().OpenDataset(changed(request, streaming=False), context)


class RepeatsAreLeftOut(LocalDatasets):
    async def ReadRows(self, request: Any, context: Any) -> AsyncIterator[dataset_pb2.ReadRowsResponse]:
        copy = changed(request)
        if request.WhichOneof("rows") == "select":
            del copy.select.indices[:]
            copy.select.indices.extend(dict.fromkeys(request.select.indices))
        async for response in super().ReadRows(copy, context):
            yield response


class RowsBeforeRefusal(LocalDatasets):
    async def ReadRows(self, request: Any, context: Any) -> AsyncIterator[dataset_pb2.ReadRowsResponse]:
        if request.WhichOneof("rows") == "select" and len(request.select.indices) > 1:
            first = dataset_pb2.ReadRowsRequest(dataset_id=request.dataset_id)
            first.select.indices.append(request.select.indices[0])
            async for response in super().ReadRows(first, context):
                yield response
            rest = changed(request)
            del rest.select.indices[0]
            request = rest
        async for response in super().ReadRows(request, context):
            yield response


class NeverCloses(LocalDatasets):
    async def CloseDataset(self, request: Any, context: Any) -> dataset_pb2.CloseDatasetResponse:
        return dataset_pb2.CloseDatasetResponse()


class DefaultsStayOut(LocalDatasets):
    async def FindDataset(self, request: Any, context: Any) -> dataset_pb2.FindDatasetResponse:
        await super().FindDataset(request, context)
        return dataset_pb2.FindDatasetResponse(source=dataset_pb2.DatasetSource(uri=request.source.uri))


class FieldsAreKept(LocalDatasets):
    async def OpenDataset(self, request: Any, context: Any) -> dataset_pb2.OpenDatasetResponse:
        copy = changed(request)
        kept = [each for each in copy.transforms if each.WhichOneof("transform") != "fields"]
        del copy.transforms[:]
        copy.transforms.extend(kept)
        return await super().OpenDataset(copy, context)


@asynccontextmanager
async def _open(kind: Any) -> AsyncIterator[Channel]:
    with tempfile.TemporaryDirectory() as folder:
        description = kind.description
        adapter = kind(description.options(), AdapterContext(data_dir=Path(folder)))
        try:
            async with to_object({description.port: adapter}, {description.port: description.capabilities}) as channel:
                yield channel
        finally:
            await adapter.close()


def _mutant(kind: Any, defect: str, *red: str, others: int = 0) -> Mutant:
    opening: Callable[[], Any] = lambda: _open(kind)  # noqa: E731
    return Mutant(defect=defect, port=kind.description.port, open=opening, red=red, others=others)


STORE_MUTANTS = (
    _mutant(RepeatsCount, "repeated batches count", "MET-RECORD-02", others=1),
    _mutant(AttemptsAreIgnored, "attempts are ignored", "MET-RECORD-03"),
    _mutant(RunsAreOne, "runs are mixed", "MET-RECORD-01", others=8),
    _mutant(NoNans, "NaN becomes 0", "MET-RECORD-04"),
    _mutant(FallingSteps, "steps fall", "MET-RECORD-01", others=5),
    _mutant(OpenEnd, "the last step is left out", "MET-QUERY-01", others=1),
    _mutant(FiftyAtMost, "later pages are lost", "MET-QUERY-02", others=1),
    _mutant(AnyMetricsToken, "any page token is taken", "MET-QUERY-03"),
    _mutant(NewestFirst, "newest values are not sorted", "MET-LATEST-01", others=1),
    _mutant(NamesUnsorted, "names ignore case", "MET-NAMES-01"),
    _mutant(VersionsAreReplaced, "a run has several contents", "REG-VERSION-02"),
    _mutant(GivenIdsAreIgnored, "given ids are ignored", "REG-VERSION-03"),
    _mutant(OutOfTheArchive, "the archive can be left", "REG-STAGE-01"),
    _mutant(ArtifactsAreReplaced, "artifacts are replaced", "REG-ARTIFACT-01"),
    _mutant(OldestFirst, "versions come oldest first", "REG-LIST-01", others=1),
    _mutant(StageFilterIsIgnored, "the stage is ignored", "REG-LIST-01"),
    _mutant(DepthIsIgnored, "max_depth is ignored", "REG-LINEAGE-01"),
    _mutant(OnlyAncestors, "descendants are ancestors", "REG-LINEAGE-01"),
    _mutant(CyclesAreLeftOut, "cycles are left out", "REG-LINEAGE-02"),
    _mutant(RevisionsAreIgnored, "revisions are ignored", "HUB-INFO-02"),
    _mutant(CountsNothing, "files are not counted", "HUB-INFO-01"),
    _mutant(FilesReversed, "files are not sorted", "HUB-LIST-01"),
    _mutant(DownloadsLoseCrc, "chunks have no CRC", "HUB-DOWNLOAD-01", others=2),
    _mutant(MissingFilesAreEmpty, "a missing file is empty", "HUB-DOWNLOAD-02", others=3),
    _mutant(RelativeSnapshots, "snapshots lie at a relative path", "HUB-SNAPSHOT-01"),
    _mutant(UploadsUnchecked, "uploads are not verified", "HUB-UPLOAD-02"),
    _mutant(AlwaysAddsTokens, "special tokens are always added", "TOK-ENCODE-03", others=2),
    _mutant(TextsReversed, "sequences come in another order", "TOK-ENCODE-01", others=2),
    _mutant(BigEndianTokens, "tokens are big-endian", "TOK-ENCODE-01", others=1),
    _mutant(StripsTexts, "texts lose line breaks", "TOK-DECODE-01"),
    _mutant(KeepsSpecialTokens, "special tokens are never skipped", "TOK-DECODE-02"),
    _mutant(BadIdsAreSkipped, "bad ids are skipped", "TOK-DECODE-03"),
    _mutant(ShiftedMasks, "masks are one byte short", "TOK-CHAT-01", others=1),
    _mutant(TrainsOnEverything, "everything is trained on", "TOK-CHAT-02"),
    _mutant(NoGenerationPrompt, "there is no generation prompt", "TOK-CHAT-03"),
    _mutant(OneFingerprint, "all datasets have one fingerprint", "DST-TRANSFORM-03", others=1),
    _mutant(OtherShuffles, "another order of shuffling", "DST-TRANSFORM-02"),
    _mutant(TransformsReversed, "transforms apply from the end", "DST-TRANSFORM-01", others=2),
    _mutant(FieldsAreKept, "fields are not mapped", "DST-TRANSFORM-04"),
    _mutant(StreamingIsIgnored, "streaming is ignored", "DST-STREAMING-02"),
    _mutant(RepeatsAreLeftOut, "repeated rows are left out", "DST-READ-01"),
    _mutant(RowsBeforeRefusal, "rows come before the refusal", "DST-READ-02"),
    _mutant(NeverCloses, "closed handles go on", "DST-CLOSE-01"),
    _mutant(DefaultsStayOut, "defaults are not filled in", "DST-FIND-01"),
)
