"""Checkpoints: from the training adapter into the blob store, then committed; and back on resume."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from crucible.kitchen.v1 import event_pb2
from crucible.port.blob.v1 import blob_pb2
from crucible.port.training.v1 import training_pb2
from crucible_kit.channel import repeated
from crucible_kit.errors import DataLossError, KitchenError
from crucible_kit.faults import fault_point
from crucible_kit.training import TrainingSession
from crucible_kitchen.runs.journal import RunJournal
from crucible_kitchen.store.records import CheckpointRecord, checkpoint_message
from crucible_kitchen.workflows.context import StageContext

logger = logging.getLogger(__name__)

_BLOB_SECONDS = 3600.0
# An adapter that is away, which is why the save failed, is not waited for once more.
_TAKE_BACK_SECONDS = 10.0
# The adapter's copy, should nobody be left to delete it; longer than copying any checkpoint takes.
_COPY_KEPT_SECONDS = 6 * 3600
# What tells that a stored checkpoint is not what was saved.
_DAMAGED = ("BLOB_CORRUPT", "BLOB_NOT_FOUND", "CHECKPOINT_CORRUPT")


class CheckpointDamagedError(DataLossError):
    """The checkpoint that an attempt was to go on from can't be read. It has the reason and the facts of its cause."""

    def __init__(self, record: CheckpointRecord, cause: KitchenError) -> None:
        super().__init__(
            f"checkpoint {record.uri} of step {record.step} is damaged: {cause.message}",
            reason=cause.reason,
            metadata={"checkpoint": record.uri, **cause.metadata},
        )
        self.record = record


class CheckpointSaver:
    """Saves and restores the checkpoints of one attempt.

    Order of a save: the adapter writes a hashed folder; every file is copied to the run's blob store, the manifest
    last; one transaction commits the checkpoint with the run's position and the event; the adapter's copy is freed.
    Then the checkpoints that are too old go: first from the store, with an event each, then their files. What a crash
    leaves before a commit or behind it is swept by the next attempt. A save that fails takes back what it has copied:
    the disk that it filled may be needed to say so.

    Args:
        keep_last: so many checkpoints to go on from are kept, beside the final one; 0: all.
    """

    def __init__(self, journal: RunJournal, blob: Any, *, keep_last: int = 0) -> None:
        self._journal = journal
        self._blob = blob
        self._keep_last = keep_last
        # Deleted in the store, while their files may still be there.
        self._leftover: list[CheckpointRecord] = []

    async def save(self, context: StageContext, *, final: bool = False) -> CheckpointRecord:
        """Saves the session's state; the position is that of the asking stage, completed.

        Args:
            final: weights only, for other tools.
        """
        run, session = context.run, context["session"]
        name = f"attempt-{run.attempt}/{'final' if final else f'step-{run.step}'}"
        result = await session.save_checkpoint(
            f"{run.run_id}/{name}", weights_only=final, ttl_seconds=_COPY_KEPT_SECONDS
        )
        prefix = f"runs/{run.run_id}/{name}"
        manifest = training_pb2.CheckpointFile(path=result.manifest_path, sha256=result.manifest_sha256)
        size, uri = 0, ""
        copied: list[str] = []
        try:
            for file in (*result.files, manifest):
                fault_point("server.save.copy")
                key = f"{prefix}/{file.path}"
                stored = await self._copy(session, result.uri, file, key)
                copied.append(key)
                size += stored.size_bytes
                uri = stored.uri.removesuffix(f"/{file.path}")
        except KitchenError:
            await self._take_back(session, result.uri, copied)
            raise
        record = CheckpointRecord(
            uri=uri,
            step=run.step,
            attempt=run.attempt,
            manifest_sha256=result.manifest_sha256,
            size_bytes=size,
            final=final,
            position=run.position(),
            files=[{"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in result.files]
            + [{"path": manifest.path, "size_bytes": stored.size_bytes, "sha256": manifest.sha256}],
            key_prefix=prefix,
        )
        fault_point("server.save.before_commit")
        await self._journal.emit(
            stage_path=context.path,
            step=run.step,
            checkpoint=record,
            checkpoint_saved=event_pb2.CheckpointSaved(checkpoint=checkpoint_message(record)),
        )
        run.checkpoint = record
        fault_point("server.save.after_commit")
        await session.delete_checkpoint(result.uri)
        await self.forget_old(stage_path=context.path, step=run.step)
        await self._delete_leftover(context)
        return record

    async def _take_back(self, session: TrainingSession, uri: str, copied: list[str]) -> None:
        """Deletes what a failed save leaves, in both places. What does not go now, the next attempt sweeps."""

        async def delete_blobs() -> None:
            for key in copied:
                await self._blob.DeleteBlob(blob_pb2.DeleteBlobRequest(key=key, allow_missing=True))

        for delete in (lambda: session.delete_checkpoint(uri), delete_blobs):
            try:
                async with asyncio.timeout(_TAKE_BACK_SECONDS):
                    await delete()
            except (TimeoutError, KitchenError) as error:
                logger.warning("what a failed save has left is still there: %s", error)

    async def forget_old(self, *, stage_path: str = "", step: int = 0) -> None:
        """Makes the checkpoints that are too old count as deleted. The newest one, which a resume needs, never is."""
        if not self._keep_last:
            return
        resumable = [each for each in await self._journal.checkpoints() if not each.final]
        whole = [each for each in resumable if each.damage_sequence is None][-self._keep_last :]
        for record in resumable:
            if not whole or record.sequence >= whole[0].sequence:
                break
            fault_point("server.keep_last.rows")
            await self._journal.delete_checkpoint(record, stage_path=stage_path, step=step)
            self._leftover.append(record)

    async def _delete_leftover(self, context: StageContext) -> None:
        """Deletes files; what does not go is told and tried again at the next save: it is no reason to stop."""
        while self._leftover:
            record = self._leftover[0]
            try:
                # The manifest, which makes a folder a checkpoint, is listed last and goes first.
                for file in reversed(record.files):
                    fault_point("server.keep_last.files")
                    key = f"{record.key_prefix}/{file['path']}"
                    await self._blob.DeleteBlob(blob_pb2.DeleteBlobRequest(key=key, allow_missing=True))
            except KitchenError as error:
                message = f"files of the deleted checkpoint {record.uri} are still there: {error.message}"
                severity = event_pb2.LogRecorded.SEVERITY_WARNING
                await context.emit(log_recorded=event_pb2.LogRecorded(severity=severity, message=message))
                return
            self._leftover.pop(0)

    async def _copy(self, session: TrainingSession, uri: str, file: training_pb2.CheckpointFile, key: str) -> Any:
        async def requests() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
            yield blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key=key))
            digest, size = hashlib.sha256(), 0
            async for chunk in session.read_checkpoint_file(uri, file.path):
                digest.update(chunk.data)
                size += len(chunk.data)
                if chunk.data:
                    part = blob_pb2.BlobChunk(offset=chunk.offset, crc32=chunk.crc32, data=chunk.data)
                    yield blob_pb2.WriteBlobRequest(chunk=part)
            if digest.hexdigest() != file.sha256:
                raise DataLossError(
                    f"{uri}/{file.path} arrived with hash {digest.hexdigest()}, the adapter said {file.sha256}",
                    reason="CHECKPOINT_CORRUPT",
                    metadata={"file": file.path, "expected": file.sha256, "actual": digest.hexdigest()},
                )
            finish = blob_pb2.WriteBlobFinish(sha256=file.sha256, size_bytes=size)
            yield blob_pb2.WriteBlobRequest(finish=finish)

        return (await repeated(lambda: self._blob.WriteBlob(requests(), timeout=_BLOB_SECONDS))).blob

    async def restore(self, context: StageContext, session: TrainingSession) -> None:
        """Loads the checkpoint that the attempt goes on from into a new session; every file's hash is checked on the
        way.

        Raises:
            CheckpointDamagedError: BLOB_CORRUPT, CHECKPOINT_CORRUPT or BLOB_NOT_FOUND naming the file.
        """
        record = context.run.checkpoint
        assert record is not None
        files = [training_pb2.CheckpointFile(**file) for file in record.files]

        async def requests() -> AsyncIterator[training_pb2.UploadCheckpointRequest]:
            header = training_pb2.UploadCheckpointHeader(name=record.key_prefix.removeprefix("runs/"), files=files)
            yield training_pb2.UploadCheckpointRequest(header=header)
            for index, file in enumerate(files):
                fault_point("server.restore.mid")
                request = blob_pb2.ReadBlobRequest(key=f"{record.key_prefix}/{file.path}")
                async for chunk in self._blob.ReadBlob(request):
                    if chunk.data:
                        part = training_pb2.UploadCheckpointChunk(
                            file_index=index, offset=chunk.offset, crc32=chunk.crc32, data=chunk.data
                        )
                        yield training_pb2.UploadCheckpointRequest(chunk=part)

        try:
            uploaded = await repeated(lambda: session.upload_checkpoint(requests()))
            await session.load_checkpoint(uploaded.uri, weights_only=record.final)
        except KitchenError as error:
            if error.reason not in _DAMAGED:
                raise
            raise CheckpointDamagedError(record, error) from error
        await session.delete_checkpoint(uploaded.uri)


async def sweep(blob: Any, run_id: str, kept: list[CheckpointRecord]) -> int:
    """Deletes what an interrupted save left: blobs of the run that belong to no committed checkpoint. Returns how
    many.
    """
    prefixes = tuple(f"{record.key_prefix}/" for record in kept)
    doomed: list[str] = []
    token = ""
    while True:
        request = blob_pb2.ListBlobsRequest(prefix=f"runs/{run_id}/", page_size=500, page_token=token)
        page = await blob.ListBlobs(request)
        doomed.extend(entry.key for entry in page.blobs if not entry.key.startswith(prefixes))
        token = page.next_page_token
        if not token:
            break
    for key in doomed:
        fault_point("server.sweep.mid")
        await blob.DeleteBlob(blob_pb2.DeleteBlobRequest(key=key, allow_missing=True))
    return len(doomed)
