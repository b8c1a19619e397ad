"""`builtin:mlflow` for metrics: what MLflow's own store then holds, and what becomes of the server's refusals."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from crucible_adapters.metrics.mlflow import MlflowMetricsStore, metric_name
from crucible_adapters.mlflow_server import MlflowExperimentOptions
from crucible_kit.adapter import AdapterContext
from crucible_kit.conformance import Verdict, run_suite, settings_of
from crucible_kit.errors import (
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    KitchenError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from crucible_kit.redaction import Secrets
from tests.conformance.bindings import BINDINGS
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.contract.test_metrics import point, query, record
from tests.kit.clocks import Waits
from tests.kit.mlflow import Mlflow
from tests.kit.scripted import Answer, Request, answer

TOKEN = "dapi-0123456789"


@pytest.fixture
def server(mlflow: Mlflow) -> Mlflow:
    return mlflow


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    """One for each test."""
    return request.node.name


def make(server: Mlflow, context: AdapterContext, waits: Waits, experiment: str, **options: Any) -> MlflowMetricsStore:
    given = {"tracking_uri": server.address, "experiment": experiment, "timeout_seconds": 100, **options}
    secrets = AdapterContext(data_dir=context.data_dir, secrets=Secrets({"token": TOKEN}))
    return MlflowMetricsStore(MlflowExperimentOptions(**given), secrets, clock=waits.clock)


@pytest.fixture
async def stub(server: Mlflow, context: AdapterContext, waits: Waits, experiment: str, local: Binding) -> Any:
    return await local.stub(make(server, context, waits, experiment))


def runs(server: Mlflow, experiment: str) -> dict[str, list[str]]:
    """MLflow's ids of its runs, by the kitchen's."""
    from mlflow.entities import ViewType

    found: dict[str, list[str]] = {}
    there = server.tracking.get_experiment_by_name(experiment)
    for each in server.tracking.search_runs([there.experiment_id], "", ViewType.ACTIVE_ONLY) if there else []:
        found.setdefault(each.data.tags["crucible.run_id"], []).append(each.info.run_id)
    return found


def history(server: Mlflow, experiment: str, name: str, run: str = "r") -> list[tuple[int, float, int]]:
    """Steps, values and milliseconds."""
    [run_id] = runs(server, experiment)[run]
    values = server.tracking.get_metric_history(run_id, name)
    return sorted((each.step, each.value, each.timestamp) for each in values)


async def test_the_suite_passes(server: Mlflow, context: AdapterContext, waits: Waits, experiment: str) -> None:
    store = make(server, context, waits, experiment)
    async with BINDINGS["object"]({"metrics": store}, {"metrics": ()}) as channel:
        report = await run_suite(channel, "metrics", settings_of("metrics", {}), only=["MET-"])
    await store.close()
    assert {each.requirement.id: each.problem for each in report.results if each.verdict is Verdict.FAILED} == {}
    assert len(report.ids(Verdict.PASSED)) > len(report.results) / 2


async def test_mlflow_has_what_was_recorded(server: Mlflow, stub: Any, experiment: str) -> None:
    await record(stub, 1, point("train/loss", 1, 0.1, 1700000000), point("a b", 2, math.nan, 1700000001))
    await record(stub, 2, point("train/loss", 2, 1e-300, 1700000002), run="r")
    await record(stub, 1, point("x", 1, 0.0, 1700000000), run="it's `other`")
    assert history(server, experiment, "train/loss") == [(1, 0.1, 1700000000000), (2, 1e-300, 1700000002000)]
    [(step, value, _)] = history(server, experiment, "x", "it's `other`")
    assert (step, value) == (1, 0.0)
    assert sorted(runs(server, experiment)) == ["it's `other`", "r"]
    assert {each.path for each in server.requests} >= {"/runs/log-batch", "/runs/create", "/runs/search"}
    # The port answers with what MLflow can't hold.
    await record(stub, 3, point("rate", 1, math.inf))
    assert await query(stub, "rate") == [(1, math.inf)]


@pytest.mark.parametrize("run", ["r", "it's \"`\\\\%"], ids=["plain", "odd"])
async def test_repeats_and_starts_anew_make_nothing_twice(
    server: Mlflow, context: AdapterContext, waits: Waits, experiment: str, local: Binding, run: str
) -> None:
    stub = await local.stub(make(server, context, waits, experiment))
    assert not await record(stub, 1, point("a", 1, 1.0, 1700000000), run=run)
    server.requests.clear()
    assert await record(stub, 1, point("a", 1, 1.0, 1700000000), run=run)
    assert server.requests == []
    await local.stop()
    # A kitchen that has lost the answer, and its database too.
    (context.data_dir / "metrics.db").unlink()
    stub = await local.stub(make(server, context, waits, experiment))
    assert not await record(stub, 1, point("a", 1, 1.0, 1700000000), run=run)
    assert history(server, experiment, "a", run) == [(1, 1.0, 1700000000000)]


async def test_a_large_batch_goes_in_several_requests(server: Mlflow, stub: Any, experiment: str) -> None:
    await record(stub, 1, *(point(f"m{number % 3}", number, float(number), 1700000000) for number in range(1001)))
    assert [each.path for each in server.requests].count("/runs/log-batch") == 2
    assert len(history(server, experiment, "m0")) == 334


async def test_a_later_attempt_comes_beside_an_earlier_one(server: Mlflow, stub: Any, experiment: str) -> None:
    await record(stub, 1, point("a", 1, 2.0, 1700000005), attempt=2)
    await record(stub, 2, point("a", 1, 1.0, 1700000001), point("a", 2, 1.0, 1700000001), attempt=1)
    assert history(server, experiment, "a") == [(1, 2.0, 1700000005000), (2, 1.0, 1700000001000)]
    assert await query(stub, "a") == [(1, 2.0), (2, 1.0)]


async def test_calls_at_a_time_make_one_run(server: Mlflow, stub: Any, experiment: str) -> None:
    await asyncio.gather(*(record(stub, number, point("a", number, 1.0, 1700000000)) for number in range(1, 7)))
    assert len(runs(server, experiment)["r"]) == 1
    assert len(history(server, experiment, "a")) == 6


async def test_a_run_that_somebody_deleted_is_made_again(server: Mlflow, stub: Any, experiment: str) -> None:
    await record(stub, 1, point("a", 1, 1.0, 1700000000))
    [gone] = runs(server, experiment)["r"]
    server.tracking.delete_run(gone)
    await record(stub, 2, point("a", 2, 2.0, 1700000000))
    assert history(server, experiment, "a") == [(2, 2.0, 1700000000000)]


NAMES = [
    "train/loss",
    "a b",
    "Verlust/\u00e4",
    "a:b-c.d",
    "a//b",
    "../a",
    "/a",
    "a/",
    ".",
    "50%",
    "x" * 255,
    "a\nb",
    ".a",
]


async def test_any_name_is_kept_apart(server: Mlflow, stub: Any, experiment: str) -> None:
    assert [metric_name(name) for name in NAMES[:4]] == NAMES[:4]
    assert len({metric_name(name) for name in NAMES}) == len(NAMES)
    await record(stub, 1, *(point(name, 1, float(number), 1700000000) for number, name in enumerate(NAMES)))
    for number, name in enumerate(NAMES):
        assert [value for _, value, _ in history(server, experiment, metric_name(name))] == [float(number)]


def told(status: str, code: str, **headers: Any) -> Answer:
    body = json.dumps({"error_code": code, "message": f"Not with {TOKEN}."})
    return answer(status, body.encode(), Content_Type="application/json", **headers)


REFUSALS: dict[str, tuple[Answer, type[KitchenError], str, int]] = {
    "401": (answer("401 Unauthorized", b"no"), UnauthenticatedError, "STORE_CREDENTIALS", 1),
    "403": (told("403 Forbidden", "PERMISSION_DENIED"), PermissionDeniedError, "STORE_FORBIDDEN", 1),
    "429": (
        told("429 Too Many", "REQUEST_LIMIT_EXCEEDED", Retry_After="7"),
        ResourceExhaustedError,
        "RATE_LIMITED",
        4,
    ),
    "500": (told("500 Internal", "INTERNAL_ERROR"), UnavailableError, "STORE_UNAVAILABLE", 4),
    "503": (answer("503 Unavailable", b"<html>later</html>"), UnavailableError, "STORE_UNAVAILABLE", 4),
    "400": (told("400 Bad Request", "BAD_REQUEST"), FailedPreconditionError, "STORE_REFUSED", 1),
    "404": (answer("404 Not Found", b"<html>nothing here</html>"), DataLossError, "STORE_REPLY_MALFORMED", 1),
    "no JSON": (answer("200 OK", b"<html>Sign in</html>"), DataLossError, "STORE_REPLY_MALFORMED", 1),
    "other JSON": (answer("200 OK", b'{"experiment": [1]}'), DataLossError, "STORE_REPLY_MALFORMED", 1),
    "broken stream": (answer("200 OK", b"{", length=9), UnavailableError, "STORE_UNAVAILABLE", 4),
}


async def test_refusals(server: Mlflow, stub: Any, waits: Waits) -> None:
    for name, (reply, kind, reason, tries) in REFUSALS.items():
        server.forget()
        waits.seconds.clear()
        server.before = lambda request, reply=reply: reply
        with refused(kind, reason) as caught:
            await record(stub, 1, point("a", 1, 1.0, 1700000000))
        assert len(server.requests) == tries, name
        if kind is ResourceExhaustedError:
            assert (waits.seconds, caught.value.retry_delay) == ([7.0] * 3, 7.0), name
        assert TOKEN not in str(caught.value), name
        # Nothing was recorded: the batch may be sent again.
        assert await query(stub, "a") == [], name
    server.forget()
    assert not await record(stub, 1, point("a", 1, 1.0, 1700000000))


async def test_trouble_that_passes_is_not_told(server: Mlflow, stub: Any, waits: Waits, experiment: str) -> None:
    left = [told("500 Internal", "INTERNAL_ERROR")]
    server.before = lambda request: left.pop() if left and request.path == "/runs/log-batch" else None
    await record(stub, 1, point("a", 1, 1.0, 1700000000))
    assert waits.seconds == [0.5]
    assert history(server, experiment, "a") == [(1, 1.0, 1700000000000)]


async def test_a_server_that_does_not_answer_is_a_time_out(
    server: Mlflow, context: AdapterContext, waits: Waits, experiment: str, local: Binding
) -> None:
    stub = await local.stub(make(server, context, waits, experiment, timeout_seconds=0.2))
    ended = threading.Event()

    def silent(request: Request) -> Answer:
        ended.wait()
        return told("500 Internal", "INTERNAL_ERROR")

    server.before = silent
    try:
        with refused(DeadlineExceededError, "STORE_TIMEOUT"):
            await record(stub, 1, point("a", 1, 1.0))
    finally:
        ended.set()


async def test_a_server_that_is_not_there_is_unavailable(
    context: AdapterContext, waits: Waits, local: Binding, unused_address: str
) -> None:
    options = MlflowExperimentOptions(tracking_uri=unused_address)
    stub = await local.stub(MlflowMetricsStore(options, context, clock=waits.clock))
    with refused(UnavailableError, "STORE_UNAVAILABLE"):
        await record(stub, 1, point("a", 1, 1.0))


@pytest.mark.parametrize("uri", ["", "mlruns", "file:///mlruns", "databricks", "http://", "http://user:word@host"])
def test_what_is_no_server_is_refused(uri: str) -> None:
    with pytest.raises(ValidationError, match="tracking_uri"):
        MlflowExperimentOptions(tracking_uri=uri)


def test_the_library_is_named_with_its_extra(context: AdapterContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "crucible_adapters.mlflow_server.find_spec", lambda name: None if name == "mlflow" else find_spec(name)
    )
    with refused(FailedPreconditionError, "PACKAGE_MISSING", says="pip install 'crucible-kitchen[mlflow]'"):
        MlflowMetricsStore(MlflowExperimentOptions(tracking_uri="http://127.0.0.1:1"), context)


_LOADS = """
import sys
from importlib.metadata import entry_points
from pathlib import Path
from crucible_kit.adapter import AdapterContext
for name in ("metrics.mlflow", "registry.mlflow"):
    [entry] = entry_points(group="crucible_kitchen.adapters", name=name)
    kind = entry.load()
    kind(kind.description.options(tracking_uri="http://127.0.0.1:1"), AdapterContext(data_dir=Path(sys.argv[1])))
print([name for name in ("mlflow", "pandas", "requests") if name in sys.modules])
"""


def test_the_library_is_loaded_when_it_is_needed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOADS, str(tmp_path)], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
