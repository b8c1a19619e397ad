"""What the store keeps, as plain values."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from crucible.kitchen.v1.event_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_COMPLETED,
    RUN_STATE_CREATED,
    RUN_STATE_FAILED,
    Checkpoint,
    RunState,
    RunSummary,
)
from crucible.type.v1.failure_pb2 import Failure

TERMINAL_STATES = frozenset({RUN_STATE_COMPLETED, RUN_STATE_FAILED, RUN_STATE_CANCELLED})


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRecord:
    """A durable state of a run, with what is needed to go on from it.

    Attributes:
        uri: opaque address.
        step: optimizer steps done.
        attempt: attempt that saved it.
        manifest_sha256: hash of its manifest, hex.
        size_bytes: size of all files.
        final: the run's last one, weights only.
        position: where the workflow stands; JSON.
        files: path, size_bytes and sha256 of each file.
        key_prefix: where its files lie in the run's blob store.
        sequence: its CheckpointSaved event; 0 until it is stored.
        damage_sequence: its CheckpointDamaged event; None: nobody has found it damaged.
    """

    uri: str
    step: int
    attempt: int
    manifest_sha256: str
    size_bytes: int
    final: bool
    position: dict[str, Any]
    files: list[dict[str, Any]]
    key_prefix: str
    sequence: int = 0
    damage_sequence: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A run as the fold over its log, with its configuration. Field meanings are those of the Run message.

    Attributes:
        queue_order: place in the queue, lowest first; the store gives the next one whenever the run becomes QUEUED.
        fed_sequence: last event whose metrics are known to be in the metrics store.
    """

    run_id: str
    recipe: str
    workflow: str
    dataset: str
    config: dict[str, Any]
    config_sha256: str
    seed: int
    create_time: datetime
    preset: str = ""
    state: RunState = RUN_STATE_CREATED
    attempt: int = 0
    pause_requested: bool = False
    failure: Failure | None = None
    labels: dict[str, str] = field(default_factory=dict)
    step: int = 0
    total_steps: int = 0
    last_sequence: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    model_version_id: str = ""
    latest_checkpoint: CheckpointRecord | None = None
    queue_order: int = 0
    summary: RunSummary | None = None
    fed_sequence: int = 0
    waiting_for_port: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestKey:
    """What makes a repeated mutation recognisable.

    Attributes:
        request_id: the caller's UUID.
        method: such as CreateRun; ids of different methods don't meet.
        payload_sha256: hash of the request's deterministic bytes, hex.
    """

    request_id: str
    method: str
    payload_sha256: str

    @classmethod
    def of(cls, method: str, request_id: str, payload: bytes) -> RequestKey | None:
        """The key of a request; None when the caller gave no id and wants no idempotency."""
        if not request_id:
            return None
        # A UUID is the same in either case.
        return cls(request_id=request_id.lower(), method=method, payload_sha256=hashlib.sha256(payload).hexdigest())


def checkpoint_message(record: CheckpointRecord) -> Checkpoint:
    """The checkpoint, without its files and position."""
    return Checkpoint(
        uri=record.uri,
        step=record.step,
        attempt=record.attempt,
        manifest_sha256=record.manifest_sha256,
        size_bytes=record.size_bytes,
        final=record.final,
    )
