"""MetricsStore in a SQLite file, and every value in event files that TensorBoard shows.

Event files hold float32 and no notion of a batch that is repeated, so questions are answered from the database. A value
goes to the event file within the database's transaction: what was recorded is in both. A process that dies between the
two leaves values in the event file alone, and the batch, sent again, puts them there a second time.
"""

from __future__ import annotations

import io
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from pydantic import Field
from sqlalchemy import Connection, func, select

from crucible.port.metrics.v1 import metrics_pb2
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_adapters.metrics.tables import points
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import FailedPreconditionError, UnavailableError

_VERSION = "brain.Event:2"


class TensorboardOptions(AdapterOptions):
    """Where the event files are."""

    logdir: Path | None = Field(
        default=None,
        description="Folder with a folder of event files for each run; none: tensorboard in the data folder.",
    )


class TensorboardMetricsStore(SqliteMetricsStore):
    """Metrics of runs in metrics.db in the data folder and in TensorBoard's event files."""

    description = AdapterDescription(name="tensorboard-metrics", port="metrics", options=TensorboardOptions)

    def __init__(self, options: TensorboardOptions, context: AdapterContext) -> None:
        if find_spec("tensorboard") is None:
            raise FailedPreconditionError(
                "builtin:tensorboard needs the Python package tensorboard, which can't be imported: "
                "pip install 'crucible-kitchen[tensorboard]'",
                reason="PACKAGE_MISSING",
                metadata={"package": "tensorboard", "extra": "tensorboard"},
            )
        super().__init__(options, context)
        self._logdir = options.logdir or context.data_dir / "tensorboard"
        # TensorBoard reads the files of a run by name: those of this process come after those of the last.
        seconds, nanos = divmod(time.time_ns(), 10**9)
        self._file_name = f"events.out.tfevents.{seconds:010d}.{nanos:09d}.kitchen"
        self._attempts: dict[str, int] = {}

    def _insert(self, connection: Connection, request: metrics_pb2.RecordMetricsRequest) -> None:
        run_id, attempt = request.run_id, request.attempt
        newest = self._attempts.get(run_id)
        if newest is None:
            newest = connection.scalar(select(func.max(points.c.attempt)).filter_by(run_id=run_id)) or 0
        super()._insert(connection, request)
        first = min(each.step for each in request.points)
        self._append(run_id, self._kept(connection, request), restart=first if 0 < newest < attempt else None)
        self._attempts[run_id] = max(newest, attempt)

    def _append(self, run_id: str, values: list[metrics_pb2.MetricPoint], *, restart: int | None) -> None:
        """Adds values to the run's event file: all of them, or none with UNAVAILABLE STORE_UNAVAILABLE.

        Args:
            restart: TensorBoard forgets what it has from this step on; None: it goes on.
        """
        folder = self._logdir / folder_name(run_id)
        path = folder / self._file_name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:
                size = file.tell()
                data = _records(values, restart=restart, head=size == 0)
                try:
                    # Whoever reads a file that grows sees whole records, or waits for the rest of the last.
                    if file.write(data) != len(data):
                        raise OSError("the disk took a part of the values")
                except OSError:
                    os.ftruncate(file.fileno(), size)
                    raise
        except OSError as error:
            raise UnavailableError(
                f"{path}: can't be written ({error.strerror or error}): free space or make it writable",
                reason="STORE_UNAVAILABLE",
                metadata={"file": path},
            ) from error


def folder_name(run_id: str) -> str:
    """Name of a run's folder: the run's, with what a name can't hold as %XX."""
    name = quote(run_id, safe=" ")
    return name.replace(".", "%2E") if not name.strip(".") else name


def _records(values: list[metrics_pb2.MetricPoint], *, restart: int | None, head: bool) -> bytes:
    # Not EventFileWriter: it has a thread for each run, and loads TensorFlow where that is installed.
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    made: Any = event_pb2  # its messages are made when it is loaded, and no type checker sees them
    Event, SessionLog, Summary = made.Event, made.SessionLog, cast(Any, summary_pb2).Summary
    now = time.time()
    events: list[Any] = [Event(wall_time=now, file_version=_VERSION)] if head else []
    if restart is not None:
        events.append(Event(wall_time=now, step=restart, session_log=SessionLog(status=SessionLog.START)))
    for each in values:
        measured = each.time.seconds + each.time.nanos * 1e-9 if each.HasField("time") else now
        summary = Summary(value=[Summary.Value(tag=each.name, simple_value=each.value)])
        events.append(Event(wall_time=measured, step=each.step, summary=summary))
    data = io.BytesIO()
    writer = RecordWriter(data)
    for event in events:
        writer.write(event.SerializeToString())
    return data.getvalue()
