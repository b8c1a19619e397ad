"""Records as the messages that clients see."""

from __future__ import annotations

import json
from functools import lru_cache

from google.protobuf import struct_pb2

from crucible.kitchen.v1 import run_pb2
from crucible_kit.adapter import to_struct
from crucible_kitchen.store.records import RunRecord, checkpoint_message


def run_message(record: RunRecord) -> run_pb2.Run:
    """The run."""
    run = run_pb2.Run(
        run_id=record.run_id,
        recipe=record.recipe,
        preset=record.preset,
        workflow=record.workflow,
        dataset=record.dataset,
        config=_config(json.dumps(record.config)),
        config_sha256=record.config_sha256,
        seed=record.seed,
        state=record.state,
        attempt=record.attempt,
        pause_requested=record.pause_requested,
        failure=record.failure,
        labels=record.labels,
        step=record.step,
        total_steps=record.total_steps,
        last_sequence=record.last_sequence,
        model_version_id=record.model_version_id,
        summary=record.summary,
        waiting_for_port=record.waiting_for_port,
    )
    if record.latest_checkpoint is not None:
        run.latest_checkpoint.CopyFrom(checkpoint_message(record.latest_checkpoint))
    run.create_time.FromDatetime(record.create_time)
    if record.start_time is not None:
        run.start_time.FromDatetime(record.start_time)
    if record.end_time is not None:
        run.end_time.FromDatetime(record.end_time)
    return run


# Making a Struct takes longer than all the rest of a page of runs, and runs often share their configuration.
@lru_cache(maxsize=256)
def _config(text: str) -> struct_pb2.Struct:
    """The configuration in JSON. The message is shared: not to be changed."""
    return to_struct(json.loads(text))
