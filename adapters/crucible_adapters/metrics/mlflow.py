"""MetricsStore in a SQLite file, and every value in a run of an MLflow tracking server.

MLflow keeps every value that it is sent, at times in milliseconds, without infinities and with fewer letters in names:
questions are answered from the database. A batch goes to MLflow first and to the database when MLflow has it, so what
was answered is in both; sent again, the same values at the same times change nothing there.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import threading
import time
from functools import partial
from typing import Any

from sqlalchemy import select

from crucible.port.metrics.v1 import metrics_pb2
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_adapters.metrics.tables import batches
from crucible_adapters.mlflow_server import (
    GONE,
    SECRETS,
    SYSTEM_CLOCK,
    MlflowExperimentOptions,
    MlflowServer,
    Stores,
    find_run_in,
    run_tags,
)
from crucible_adapters.retries import Clock
from crucible_kit.adapter import AdapterContext, AdapterDescription

_MOST_IN_A_REQUEST = 1000
_MOST_CHARACTERS = 250
_MOST_RUNS = 10_000
_NOT_IN_A_NAME = re.compile(r"[^/\w.\- :]")


class MlflowMetricsStore(SqliteMetricsStore):
    """Metrics of runs in metrics.db in the data folder and on an MLflow server.

    Args:
        clock: time and chance between tries; tests give their own.
    """

    description = AdapterDescription(
        name="mlflow-metrics", port="metrics", options=MlflowExperimentOptions, secrets=SECRETS
    )

    def __init__(
        self, options: MlflowExperimentOptions, context: AdapterContext, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._server = MlflowServer("mlflow", options, context.secrets, clock)
        super().__init__(options, context)
        self._experiment = options.experiment
        self._runs: dict[str, str] = {}
        self._making = threading.Lock()

    async def close(self) -> None:
        """Waits for what is under way and closes the file."""
        await self._server.close()
        await super().close()

    async def RecordMetrics(
        self, request: metrics_pb2.RecordMetricsRequest, context: Any
    ) -> metrics_pb2.RecordMetricsResponse:
        values = await self._threads.run(self._new, request)
        if values:
            await self._server.run(context, partial(self._send, request.run_id, values))
        return await super().RecordMetrics(request, context)

    def _new(self, request: metrics_pb2.RecordMetricsRequest) -> list[metrics_pb2.MetricPoint]:
        """The values that MLflow has to have before the batch is recorded."""
        with self._file.transaction() as connection:
            known = select(batches.c.batch_key).filter_by(run_id=request.run_id, batch_key=request.batch_key)
            if connection.execute(known).first() is not None:
                return []
            return self._kept(connection, request)

    def _send(self, run_id: str, values: list[metrics_pb2.MetricPoint], stores: Stores) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import RestException

        now = time.time_ns()
        metrics: list[Any] = []
        for each in values:
            measured = each.time.ToNanoseconds() if each.HasField("time") else now
            metrics.append(Metric(metric_name(each.name), each.value, measured // 10**6, each.step))
        known = self._runs.get(run_id)
        for start in range(0, len(metrics), _MOST_IN_A_REQUEST):
            some = metrics[start : start + _MOST_IN_A_REQUEST]
            try:
                stores.tracking.log_batch(self._run(stores, run_id), some, [], [])
            except RestException as error:
                if known is None or error.error_code not in GONE:
                    raise
                # Somebody has deleted the run: the next is another.
                self._runs.pop(run_id, None)
                known = None
                stores.tracking.log_batch(self._run(stores, run_id), some, [], [])

    def _run(self, stores: Stores, run_id: str) -> str:
        """MLflow's id of a run, which is found by its tag, or made."""
        with self._making:
            known = self._runs.get(run_id)
            if known is None:
                if len(self._runs) >= _MOST_RUNS:
                    self._runs.clear()
                known = self._runs[run_id] = self._find_run(stores, run_id)
            return known

    def _find_run(self, stores: Stores, run_id: str) -> str:
        from mlflow.entities import RunTag

        experiment = self._experiment_id(stores)
        found = find_run_in(stores, experiment, run_id)
        if found is not None:
            return found
        now, tags = time.time_ns() // 10**6, [RunTag(*tag) for tag in run_tags(run_id).items()]
        made = stores.tracking.create_run(experiment, "crucible-kitchen", now, tags, run_id)
        return made.info.run_id

    def _experiment_id(self, stores: Stores) -> str:
        from mlflow.exceptions import RestException

        found = stores.tracking.get_experiment_by_name(self._experiment)
        if found is not None:
            return found.experiment_id
        try:
            return stores.tracking.create_experiment(self._experiment)
        except RestException as error:
            found = stores.tracking.get_experiment_by_name(self._experiment)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
            return found.experiment_id  # made by somebody else since


def metric_name(name: str) -> str:
    """A metric's name as MLflow can have it: one with other characters has _ for them, and a hash at its end."""
    plain = _NOT_IN_A_NAME.sub("_", name)
    norm = posixpath.normpath(plain)
    if plain == name and len(name) <= _MOST_CHARACTERS and norm == name and not norm.startswith((".", "/")):
        return name
    plain = "/".join(part for part in plain.split("/") if part not in ("", ".", ".."))
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{plain.lstrip('.')[: _MOST_CHARACTERS - 13]}-{digest}"
