"""The fake of the metrics port: numbers in memory."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from crucible.port.metrics.v1 import metrics_pb2, metrics_pb2_grpc
from crucible_kit import paging
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import field_error


class FakeMetricsOptions(AdapterOptions):
    """What every fake takes."""

    seed: int = Field(default=0, ge=0, description="Changes nothing: a store invents nothing.")


class _Run:
    """The numbers of one run: batches seen, and attempt and point by name and step."""

    def __init__(self) -> None:
        self.batches: set[int] = set()
        self.points: dict[str, dict[int, tuple[int, metrics_pb2.MetricPoint]]] = {}

    def record(self, attempt: int, point: metrics_pb2.MetricPoint) -> None:
        steps = self.points.setdefault(point.name, {})
        if attempt >= steps.get(point.step, (0, None))[0]:
            kept = metrics_pb2.MetricPoint()
            kept.CopyFrom(point)
            steps[point.step] = (attempt, kept)


class FakeMetricsStore(metrics_pb2_grpc.MetricsStoreServiceServicer):
    """Metrics in dictionaries."""

    description = AdapterDescription(name="fake-metrics", port="metrics", options=FakeMetricsOptions)

    def __init__(self, options: FakeMetricsOptions, context: AdapterContext) -> None:
        self._runs: dict[str, _Run] = {}

    async def close(self) -> None:
        """Forgets the numbers."""
        self._runs.clear()

    async def RecordMetrics(
        self, request: metrics_pb2.RecordMetricsRequest, context: Any
    ) -> metrics_pb2.RecordMetricsResponse:
        run = self._runs.setdefault(request.run_id, _Run())
        if request.batch_key in run.batches:
            return metrics_pb2.RecordMetricsResponse(duplicate=True)
        run.batches.add(request.batch_key)
        for point in request.points:
            run.record(request.attempt, point)
        return metrics_pb2.RecordMetricsResponse()

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
        after = position[0] if position else -1
        points = self._run(request.run_id).points.get(request.name, {})
        steps = sorted(
            step for step in points if step > after and (low or 0) <= step and (high is None or step <= high)
        )
        return metrics_pb2.QueryMetricsResponse(
            points=[points[step][1] for step in steps[:size]],
            next_page_token=paging.encode([steps[size - 1]], scope) if len(steps) > size else "",
        )

    async def GetLatestMetrics(
        self, request: metrics_pb2.GetLatestMetricsRequest, context: Any
    ) -> metrics_pb2.GetLatestMetricsResponse:
        points = self._run(request.run_id).points
        names = sorted(name for name in points if name.startswith(request.prefix))
        return metrics_pb2.GetLatestMetricsResponse(points=[points[name][max(points[name])][1] for name in names])

    async def ListMetricNames(
        self, request: metrics_pb2.ListMetricNamesRequest, context: Any
    ) -> metrics_pb2.ListMetricNamesResponse:
        return metrics_pb2.ListMetricNamesResponse(names=sorted(self._run(request.run_id).points))

    def _run(self, run_id: str) -> _Run:
        return self._runs.get(run_id) or _Run()
