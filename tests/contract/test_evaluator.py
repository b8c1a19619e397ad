"""Evaluator: samples as they are scored, then what came of them all."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from crucible.port.evaluator.v1 import evaluator_pb2 as pb
from crucible_adapters.fakes.evaluator import FakeEvaluator, FakeEvaluatorOptions
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnimplementedError,
    from_failure,
)
from tests.contract.conftest import Binding
from tests.contract.listing import assert_pages
from tests.contract.refusals import refused


@pytest.fixture
async def stub(binding: Binding, context: AdapterContext) -> Any:
    return await binding.stub(FakeEvaluator(FakeEvaluatorOptions(max_evaluations=2), context))


def request(*names: str, model: str | pb.EvaluatedModel = "fake/one", **fields: Any) -> pb.EvaluateRequest:
    selected = [pb.TaskSelection(name=name) for name in names or ("arithmetic", "repeat")]
    evaluated = pb.EvaluatedModel(name=model) if isinstance(model, str) else model
    return pb.EvaluateRequest(**{"tasks": selected, "model": evaluated, **fields})


def of_model(**model: Any) -> pb.EvaluateRequest:
    return request("repeat", model=pb.EvaluatedModel(**model))


async def evaluate(stub: Any, asked: pb.EvaluateRequest) -> list[pb.EvaluateResponse]:
    return [event async for event in stub.Evaluate(asked)]


async def samples_of(stub: Any, asked: pb.EvaluateRequest) -> dict[tuple[str, str], pb.EvaluationSample]:
    events = await evaluate(stub, asked)
    return {(each.sample.task, each.sample.id): each.sample for each in events if each.HasField("sample")}


async def test_a_stream_tells_what_comes_then_samples_then_aggregates(stub: Any) -> None:
    events = await evaluate(stub, request())
    assert [each.WhichOneof("event") for each in events] == ["started", *["sample"] * 60, "summary"]
    started, summary = events[0].started, events[-1].summary
    assert started.num_samples == 60 and started.evaluation_id == summary.evaluation_id
    samples = [each.sample for each in events[1:-1]]
    assert len({(each.task, each.id) for each in samples}) == 60
    for sample in samples:
        assert sample.input[0].role == "user" and sample.output and not sample.HasField("error")
        assert set(sample.scores) == {"exact", "length"}
        assert sample.scores["exact"].value == (sample.scores["exact"].answer in sample.target)


async def test_aggregates_are_those_of_the_samples(stub: Any) -> None:
    events = await evaluate(stub, request())
    values: dict[tuple[str, str], list[float]] = {}
    for event in events[1:-1]:
        for scorer, score in event.sample.scores.items():
            values.setdefault((event.sample.task, scorer), []).append(score.value)
    summary = events[-1].summary
    assert [(each.task, each.scorer) for each in summary.aggregates] == sorted(values)
    for each in summary.aggregates:
        found = values[each.task, each.scorer]
        assert each.count == len(found)
        assert each.mean == pytest.approx(statistics.fmean(found))
        assert each.std == pytest.approx(statistics.stdev(found))
        assert each.stderr == pytest.approx(statistics.stdev(found) / math.sqrt(len(found)))
        assert (each.min, each.max, each.median) == (min(found), max(found), statistics.median(found))
    assert summary.num_errors == 0 and summary.usage.input_tokens > 0 and summary.cost.currency == "USD"


async def test_one_value_has_no_spread(stub: Any) -> None:
    summary = (await evaluate(stub, request("repeat", limit=1)))[-1].summary
    for each in summary.aggregates:
        assert each.count == 1 and not each.HasField("std") and not each.HasField("stderr")


async def test_scores_follow_from_seed_and_model(stub: Any) -> None:
    def right(samples: dict[tuple[str, str], pb.EvaluationSample]) -> list[float]:
        return [samples[key].scores["exact"].value for key in sorted(samples)]

    first = await samples_of(stub, request())
    assert await samples_of(stub, request()) == first
    assert right(await samples_of(stub, request(seed=3))) != right(first)
    assert right(await samples_of(stub, request(model="fake/two"))) != right(first)
    assert right(await samples_of(stub, request(seed=0))) == right(first)
    greedy = [await samples_of(stub, request(seed=seed, temperature=0)) for seed in (1, 2)]
    assert right(greedy[0]) == right(greedy[1])


async def test_a_limit_takes_the_first_samples(stub: Any) -> None:
    events = await evaluate(stub, request(limit=3))
    assert events[0].started.num_samples == 6
    ids = {f"{task}-{number}" for task in ("arithmetic", "repeat") for number in range(3)}
    assert {each.sample.id for each in events[1:-1]} == ids
    assert (await evaluate(stub, request("repeat", limit=1000)))[0].started.num_samples == 20


async def test_answers_have_at_most_max_tokens(stub: Any) -> None:
    samples = await samples_of(stub, request("repeat", max_tokens=2))
    assert {each.output for each in samples.values()} == {"The answer"}
    assert {each.scores["exact"].value for each in samples.values()} == {0.0}


async def test_options_are_checked_against_the_task_s_schema(stub: Any) -> None:
    def with_options(name: str, options: dict[str, Any]) -> pb.EvaluateRequest:
        return request(tasks=[pb.TaskSelection(name=name, options=ParseDict(options, Struct()))], limit=5)

    samples = await samples_of(stub, with_options("arithmetic", {"digits": 3}))
    assert any(len(each.target[0]) >= 3 for each in samples.values())
    for name, options, field in (
        ("arithmetic", {"digits": 99}, "tasks[0].options.digits"),
        ("arithmetic", {"digit": 1}, "tasks[0].options.digit"),
        ("repeat", {"digits": 1}, "tasks[0].options.digits"),
    ):
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            await evaluate(stub, with_options(name, options))


async def test_samples_without_an_answer_are_in_no_aggregate(stub: Any) -> None:
    events = await evaluate(stub, request("repeat", model="fake/flaky"))
    failed = [each.sample for each in events[1:-1] if each.sample.HasField("error")]
    assert len(failed) == 7 and not any(each.scores or each.output for each in failed)
    assert from_failure(failed[0].error).reason == "MODEL_UNREACHABLE" and failed[0].error.retryable
    summary = events[-1].summary
    assert summary.num_errors == 7 and {each.count for each in summary.aggregates} == {13}


async def test_an_evaluation_without_any_score_fails(stub: Any) -> None:
    events = []
    with refused(FailedPreconditionError, "NOTHING_SCORED"):
        async for event in stub.Evaluate(request("repeat", model="fake/broken")):
            events.append(event)  # noqa: PERF401 - a comprehension would lose them with the error
    assert len(events) == 21 and all(each.sample.HasField("error") for each in events[1:])
    with refused(NotFoundError, "EVALUATION_NOT_FOUND"):
        await stub.GenerateReport(pb.GenerateReportRequest(evaluation_id=events[0].started.evaluation_id))


async def test_what_is_not_there_is_refused(stub: Any) -> None:
    endpoint = pb.ModelEndpoint(uri="http://127.0.0.1:9/v1", model="m")
    for asked, kind, reason in (
        (request("chess"), NotFoundError, "TASK_NOT_FOUND"),
        (request(model="missing"), NotFoundError, "MODEL_NOT_FOUND"),
        (of_model(checkpoint_uri="x/missing"), NotFoundError, "CHECKPOINT_NOT_FOUND"),
        (of_model(endpoint=endpoint), UnimplementedError, "CAPABILITY_MISSING"),
    ):
        with refused(kind, reason):
            await evaluate(stub, asked)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="tasks[1].name"):
        await evaluate(stub, request("repeat", "repeat"))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="tasks"):
        await evaluate(stub, request(tasks=[]))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="model"):
        await evaluate(stub, of_model())
    assert len(await evaluate(stub, of_model(checkpoint_uri="file:///c"))) == 22


async def test_evaluations_at_work_have_no_report(local: Binding, context: AdapterContext) -> None:
    """In the process, where an evaluation waits for its reader; over a wire it may have finished by now."""
    stub = await local.stub(FakeEvaluator(FakeEvaluatorOptions(), context))
    stream = stub.Evaluate(request("repeat"))
    asked = pb.GenerateReportRequest(evaluation_id=(await anext(stream)).started.evaluation_id)
    with refused(FailedPreconditionError, "EVALUATION_UNFINISHED"):
        await stub.GenerateReport(asked)
    assert [event async for event in stream][-1].HasField("summary")
    assert (await stub.GenerateReport(asked)).report


async def test_reports_are_of_finished_evaluations(stub: Any) -> None:
    events = await evaluate(stub, request("repeat"))
    evaluation_id, summary = events[0].started.evaluation_id, events[-1].summary
    asked = pb.GenerateReportRequest(evaluation_id=evaluation_id)
    report = await stub.GenerateReport(asked)
    assert report.media_type == "text/markdown" and "| repeat | exact |" in report.report
    asked.format = pb.REPORT_FORMAT_JSON
    report = await stub.GenerateReport(asked)
    told = json.loads(report.report)
    assert report.media_type == "application/json" and told["evaluation_id"] == evaluation_id
    assert [each["mean"] for each in told["aggregates"]] == [each.mean for each in summary.aggregates]


async def test_evaluations_at_the_same_time_are_limited(local: Binding, context: AdapterContext) -> None:
    """In the process, where an evaluation waits for its reader; a wire would take in a short one whole."""
    stub = await local.stub(FakeEvaluator(FakeEvaluatorOptions(max_evaluations=2), context))
    streams = [stub.Evaluate(request("repeat")) for _ in range(2)]
    for each in streams:
        await anext(each)
    with pytest.raises(ResourceExhaustedError) as caught:
        await evaluate(stub, request("repeat"))
    assert caught.value.reason == "TOO_MANY_EVALUATIONS" and caught.value.retry_delay
    for each in streams:
        [event async for event in each]
    assert await evaluate(stub, request("repeat"))


async def test_tasks_are_listed(stub: Any) -> None:
    tasks = (await stub.ListTasks(pb.ListTasksRequest())).tasks
    assert [(each.name, each.num_samples) for each in tasks] == [("arithmetic", 40), ("repeat", 20)]
    assert all(list(each.scorers) == ["exact", "length"] and each.description for each in tasks)
    assert "digits" in tasks[0].options_schema.fields["properties"].struct_value.fields
    assert not tasks[1].HasField("options_schema")
    assert [each.name for each in (await stub.ListTasks(pb.ListTasksRequest(prefix="re"))).tasks] == ["repeat"]
    await assert_pages(stub.ListTasks, pb.ListTasksRequest(), "tasks")
