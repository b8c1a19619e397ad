"""MetricsStore in a SQLite file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from sqlalchemy import Connection, Row, and_, func, select
from sqlalchemy.dialects.sqlite import insert

from crucible.port.metrics.v1 import metrics_pb2, metrics_pb2_grpc
from crucible_adapters.metrics.tables import SCHEMA_VERSION, batches, metadata, points, series
from crucible_adapters.sqlite_file import SqliteFile
from crucible_adapters.threads import Threads
from crucible_kit import paging
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import field_error


class SqliteMetricsStore(metrics_pb2_grpc.MetricsStoreServiceServicer):
    """Metrics of runs in metrics.db in the data folder."""

    description: ClassVar[AdapterDescription] = AdapterDescription(name="sqlite-metrics", port="metrics")

    def __init__(self, options: AdapterOptions, context: AdapterContext) -> None:
        self._file = SqliteFile(context.data_dir / "metrics.db", metadata, version=SCHEMA_VERSION)
        self._threads = Threads("metrics", 1)

    async def close(self) -> None:
        """Ends the thread and closes the file."""
        await self._threads.close()
        self._file.close()

    async def RecordMetrics(
        self, request: metrics_pb2.RecordMetricsRequest, context: Any
    ) -> metrics_pb2.RecordMetricsResponse:
        return metrics_pb2.RecordMetricsResponse(duplicate=not await self._threads.run(self._record, request))

    def _record(self, request: metrics_pb2.RecordMetricsRequest) -> bool:
        """Whether the batch was new."""
        with self._file.transaction() as connection:
            batch = {"run_id": request.run_id, "batch_key": request.batch_key}
            known = select(batches.c.batch_key).filter_by(**batch)
            if connection.execute(known).first() is not None:
                return False
            connection.execute(insert(batches), batch)
            self._insert(connection, request)
        return True

    def _insert(self, connection: Connection, request: metrics_pb2.RecordMetricsRequest) -> None:
        """Stores the points of a batch that is new; what it raises undoes the batch."""
        upsert = insert(points)
        upsert = upsert.on_conflict_do_update(
            set_={name: upsert.excluded[name] for name in ("attempt", "value", "time_seconds", "time_nanos")},
            where=upsert.excluded.attempt >= points.c.attempt,
        )
        connection.execute(upsert, [_to_row(request, point) for point in request.points])
        newest: dict[str, int] = {}
        for point in request.points:
            newest[point.name] = max(point.step, newest.get(point.name, 0))
        advance = insert(series)
        advance = advance.on_conflict_do_update(
            set_={"last_step": advance.excluded.last_step},
            where=advance.excluded.last_step > series.c.last_step,
        )
        connection.execute(
            advance,
            [{"run_id": request.run_id, "name": name, "last_step": step} for name, step in newest.items()],
        )

    def _kept(self, connection: Connection, request: metrics_pb2.RecordMetricsRequest) -> list[metrics_pb2.MetricPoint]:
        """The points of a batch that count: not those that the batch itself replaces, or a higher attempt has."""
        values = {(each.name, each.step): each for each in request.points}
        steps = [step for _, step in values]
        better = select(points.c.name, points.c.step).where(
            points.c.run_id == request.run_id,
            points.c.attempt > request.attempt,
            points.c.step.between(min(steps), max(steps)),
        )
        for row in connection.execute(better):
            values.pop((row.name, row.step), None)
        return list(values.values())

    async def QueryMetrics(
        self, request: metrics_pb2.QueryMetricsRequest, context: Any
    ) -> metrics_pb2.QueryMetricsResponse:
        size = paging.page_size(request.page_size)
        low = request.min_step if request.HasField("min_step") else None
        high = request.max_step if request.HasField("max_step") else None
        if low is not None and high is not None and low > high:
            raise field_error("max_step", f"is {high}, must be at least min_step, {low}")
        scope = f"QueryMetrics\0{request.run_id}\0{request.name}\0{low}\0{high}"
        position = paging.decode(request.page_token, scope)
        query = select(points).filter_by(run_id=request.run_id, name=request.name).order_by(points.c.step)
        if low is not None:
            query = query.where(points.c.step >= low)
        if high is not None:
            query = query.where(points.c.step <= high)
        if position:
            query = query.where(points.c.step > position[0])
        rows = await self._threads.run(self._read, query.limit(size + 1))
        response = metrics_pb2.QueryMetricsResponse(points=[_to_point(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = paging.encode([rows[size - 1].step], scope)
        return response

    async def GetLatestMetrics(
        self, request: metrics_pb2.GetLatestMetricsRequest, context: Any
    ) -> metrics_pb2.GetLatestMetricsResponse:
        newest = and_(
            points.c.run_id == series.c.run_id, points.c.name == series.c.name, points.c.step == series.c.last_step
        )
        query = (
            select(points)
            .join_from(series, points, newest)
            .where(series.c.run_id == request.run_id)
            # Not LIKE: it takes upper for lower case, and % for anything.
            .where(func.substr(series.c.name, 1, len(request.prefix)) == request.prefix)
            .order_by(series.c.name)
        )
        rows = await self._threads.run(self._read, query)
        return metrics_pb2.GetLatestMetricsResponse(points=[_to_point(row) for row in rows])

    async def ListMetricNames(
        self, request: metrics_pb2.ListMetricNamesRequest, context: Any
    ) -> metrics_pb2.ListMetricNamesResponse:
        query = select(series.c.name).filter_by(run_id=request.run_id).order_by(series.c.name)
        rows = await self._threads.run(self._read, query)
        return metrics_pb2.ListMetricNamesResponse(names=[row.name for row in rows])

    def _read(self, query: Any) -> Sequence[Row]:
        with self._file.transaction() as connection:
            return connection.execute(query).all()


def _to_row(request: metrics_pb2.RecordMetricsRequest, point: metrics_pb2.MetricPoint) -> dict[str, Any]:
    has_time = point.HasField("time")
    return {
        "run_id": request.run_id,
        "name": point.name,
        "step": point.step,
        "attempt": request.attempt,
        "value": None if math.isnan(point.value) else point.value,
        "time_seconds": point.time.seconds if has_time else None,
        "time_nanos": point.time.nanos if has_time else None,
    }


def _to_point(row: Row) -> metrics_pb2.MetricPoint:
    point = metrics_pb2.MetricPoint(name=row.name, step=row.step, value=math.nan if row.value is None else row.value)
    if row.time_seconds is not None:
        point.time.seconds, point.time.nanos = row.time_seconds, row.time_nanos
    return point
