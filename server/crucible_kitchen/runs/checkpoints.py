"""Checkpoints: from the training adapter into the blob store, then committed; and back on resume."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

from crucible.kitchen.v1 import event_pb2
from crucible.port.blob.v1 import blob_pb2
from crucible.port.training.v1 import training_pb2
from crucible_kit.errors import DataLossError
from crucible_kitchen.ports.training import TrainingSession
from crucible_kitchen.runs.journal import RunJournal
from crucible_kitchen.store.records import CheckpointRecord, checkpoint_message
from crucible_kitchen.workflows.context import StageContext

_BLOB_SECONDS = 3600.0


class CheckpointSaver:
    """Saves and restores the checkpoints of one attempt.

    Order of a save: the adapter writes a hashed folder; every file is copied to the run's blob store, the manifest
    last; one transaction commits the checkpoint with the run's position and the event; the adapter's copy is freed.
    What a crash leaves before the commit is swept by the next attempt.
    """

    def __init__(self, journal: RunJournal, blob: Any) -> None:
        self._journal = journal
        self._blob = blob

    async def save(self, context: StageContext, *, final: bool = False) -> CheckpointRecord:
        """Saves the session's state; the position is that of the asking stage, completed.

        Args:
            final: weights only, for other tools.
        """
        run, session = context.run, context["session"]
        name = f"attempt-{run.attempt}/{'final' if final else f'step-{run.step}'}"
        result = await session.save_checkpoint(f"{run.run_id}/{name}", weights_only=final)
        prefix = f"runs/{run.run_id}/{name}"
        manifest = training_pb2.CheckpointFile(path=result.manifest_path, sha256=result.manifest_sha256)
        size, uri = 0, ""
        for file in (*result.files, manifest):
            stored = await self._copy(session, result.uri, file, f"{prefix}/{file.path}")
            size += stored.size_bytes
            uri = stored.uri.removesuffix(f"/{file.path}")
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
        await self._journal.emit(
            stage_path=context.path,
            step=run.step,
            checkpoint=record,
            checkpoint_saved=event_pb2.CheckpointSaved(checkpoint=checkpoint_message(record)),
        )
        run.checkpoint = record
        await session.delete_checkpoint(result.uri)
        return record

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

        return (await self._blob.WriteBlob(requests(), timeout=_BLOB_SECONDS)).blob

    async def restore(self, context: StageContext, session: TrainingSession) -> None:
        """Loads the checkpoint that the attempt goes on from into a new session; every file's hash is checked on the
        way.

        Raises:
            DataLossError: CHECKPOINT_CORRUPT or BLOB_CORRUPT naming the file.
        """
        record = context.run.checkpoint
        assert record is not None
        files = [training_pb2.CheckpointFile(**file) for file in record.files]

        async def requests() -> AsyncIterator[training_pb2.UploadCheckpointRequest]:
            header = training_pb2.UploadCheckpointHeader(name=record.key_prefix.removeprefix("runs/"), files=files)
            yield training_pb2.UploadCheckpointRequest(header=header)
            for index, file in enumerate(files):
                request = blob_pb2.ReadBlobRequest(key=f"{record.key_prefix}/{file.path}")
                async for chunk in self._blob.ReadBlob(request):
                    if chunk.data:
                        part = training_pb2.UploadCheckpointChunk(
                            file_index=index, offset=chunk.offset, crc32=chunk.crc32, data=chunk.data
                        )
                        yield training_pb2.UploadCheckpointRequest(chunk=part)

        uploaded = await session.upload_checkpoint(requests())
        await session.load_checkpoint(uploaded.uri, weights_only=record.final)
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
        await blob.DeleteBlob(blob_pb2.DeleteBlobRequest(key=key, allow_missing=True))
    return len(doomed)
