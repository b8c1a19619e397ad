"""Evaluators: every sample once, and aggregates that follow from them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from pydantic import Field

from crucible.port.evaluator.v1 import evaluator_pb2 as pb
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import (
    CheckSkipped,
    check,
    check_close,
    check_equal,
    check_is,
    check_refused,
    collect,
)
from crucible_kit.conformance.llm import check_cost
from crucible_kit.conformance.paging import Page, all_keys, check_names
from crucible_kit.conformance.requirement import Samples, Suite
from crucible_kit.conformance.settings import SuiteSettings
from crucible_kit.errors import KitchenError

_RELATIVE = 1e-6


class EvaluatorSettings(SuiteSettings):
    """Settings of the suite of evaluators."""

    call_seconds: float = Field(default=300.0, gt=0, description="Deadline of each call, in seconds.")
    check_seconds: float = Field(
        default=1200.0, gt=0, description="Time after which a requirement counts as failed, in seconds."
    )
    model: str = Field(default="fake-model", description="Model to evaluate, by a name that the adapter reaches.")
    tasks: list[str] = Field(default=[], description="Tasks to do. Empty: the first two that are listed.")
    limit: int = Field(default=4, ge=2, description="Samples of each task.")


SUITE = Suite(port="evaluator", settings=EvaluatorSettings)
Evaluators = Context[EvaluatorSettings]


def pages(context: Evaluators, prefix: str = "") -> Any:
    """What asks for a page of names."""

    async def page(size: int, token: str) -> Page:
        request = pb.ListTasksRequest(prefix=prefix, page_size=size, page_token=token)
        response = await context.stub.ListTasks(request)
        return Page([task.name for task in response.tasks], response.next_page_token)

    return page


async def task_names(context: Evaluators) -> list[str]:
    """The tasks to do."""
    names = context.settings.tasks or (await all_keys(pages(context), 0))[:2]
    if not names:
        raise CheckSkipped("the adapter has no task")
    return list(names)


def evaluate_request(context: Evaluators, names: Sequence[str], **fields: Any) -> pb.EvaluateRequest:
    """A request for an evaluation of the settings' model."""
    given = {
        "tasks": [pb.TaskSelection(name=name) for name in names],
        "model": pb.EvaluatedModel(name=context.settings.model),
        "limit": context.settings.limit,
        "seed": 1,
    }
    return pb.EvaluateRequest(**(given | fields))


async def evaluate(context: Evaluators, names: Sequence[str], **fields: Any) -> list[pb.EvaluateResponse]:
    """All messages of an evaluation."""
    return await collect(context.stub.Evaluate(evaluate_request(context, names, **fields)))


@SUITE.samples
async def _samples(context: Evaluators) -> Samples:
    names = await task_names(context)
    return {
        "ListTasks": pb.ListTasksRequest(),
        "Evaluate": evaluate_request(context, names[:1]),
        "GenerateReport": pb.GenerateReportRequest(evaluation_id="no-evaluation-is-called-so"),
    }


@SUITE.pings
async def _ping(context: Evaluators) -> None:
    await context.stub.ListTasks(pb.ListTasksRequest(page_size=1))


@SUITE.requirement(
    "EVL-TASKS-01",
    "ListTasks MUST list the tasks whose name begins with the prefix, by name, each once, in pages of any size.",
    quote="ListTasks lists the tasks, sorted by name.",
)
async def _lists(context: Evaluators) -> None:
    names = await check_names(pages(context), "the tasks")
    check(len(names) > 0, "at least one task", "none")
    for prefix in (names[0], names[-1][:1], "no task begins so"):
        found = await all_keys(pages(context, prefix), 0)
        check_equal(found, [name for name in names if name.startswith(prefix)], f"the tasks that begin with {prefix!r}")
    for task in (await context.stub.ListTasks(pb.ListTasksRequest())).tasks:
        check_equal(list(task.scorers), sorted(set(task.scorers)), f"the scorers of {task.name}, sorted and each once")


@SUITE.requirement(
    "EVL-RUN-01",
    "An evaluation MUST send what will be done first, then every sample once, then the summary, and nothing after it.",
    quote="first what will be done, then every sample once it is scored, in any order, then the aggregates.",
)
async def _in_order(context: Evaluators) -> None:
    names = await task_names(context)
    messages = await evaluate(context, names)
    kinds = [message.WhichOneof("event") for message in messages]
    expected = ["started", *["sample"] * (len(kinds) - 2), "summary"]
    check_equal(kinds, expected, "the kinds of messages")
    started, summary = messages[0].started, messages[-1].summary
    samples = [message.sample for message in messages[1:-1]]
    check(bool(started.evaluation_id), "an id of the evaluation", "an empty one")
    check_equal(summary.evaluation_id, started.evaluation_id, "the id in the summary")
    check_equal(len(samples), started.num_samples, "the number of samples, as was said,")
    keys = [(sample.task, sample.id) for sample in samples]
    check_equal(len(set(keys)), len(keys), "the number of samples without repeats")
    check_equal({sample.task for sample in samples}, set(names), "the tasks of the samples")
    for name in names:
        count = sum(sample.task == name for sample in samples)
        check(0 < count <= context.settings.limit, f"at most {context.settings.limit} samples of {name}", count)
    for sample in samples:
        check(len(sample.input) > 0, f"the input of {sample.id}", "none")


@SUITE.requirement(
    "EVL-RUN-02",
    "Aggregates MUST follow from the samples: one for each task and scorer with a value, sorted by both, exact.",
    quote="One for each task and scorer that has a value, sorted by both.",
)
async def _aggregates(context: Evaluators) -> None:
    messages = await evaluate(context, await task_names(context))
    samples = [message.sample for message in messages if message.WhichOneof("event") == "sample"]
    summary = messages[-1].summary
    values: dict[tuple[str, str], list[float]] = {}
    for sample in samples:
        for scorer, score in sample.scores.items():
            if score.HasField("value") and not sample.HasField("error"):
                values.setdefault((sample.task, scorer), []).append(score.value)
    got = [(each.task, each.scorer) for each in summary.aggregates]
    check_equal(got, sorted(values), "(task, scorer) of the aggregates")
    for aggregate in summary.aggregates:
        _check_aggregate(aggregate, values[aggregate.task, aggregate.scorer])
    errors = sum(sample.HasField("error") for sample in samples)
    check_equal(summary.num_errors, errors, "num_errors")
    if summary.HasField("cost"):
        check_cost(summary.cost)


def _check_aggregate(aggregate: pb.Aggregate, values: Sequence[float]) -> None:
    where = f"of {aggregate.task} by {aggregate.scorer}"
    check_equal(aggregate.count, len(values), f"count {where}")
    numbers = {
        "mean": (aggregate.mean, statistics.fmean(values)),
        "min": (aggregate.min, min(values)),
        "max": (aggregate.max, max(values)),
        "median": (aggregate.median, statistics.median(values)),
    }
    many = len(values) > 1
    check_equal(
        (aggregate.HasField("std"), aggregate.HasField("stderr")), (many, many), f"whether std is there {where}"
    )
    if many:
        deviation = statistics.stdev(values)
        numbers["std"] = (aggregate.std, deviation)
        numbers["stderr"] = (aggregate.stderr, deviation / math.sqrt(len(values)))
    for name, (got, expected) in numbers.items():
        check_close(got, expected, f"{name} {where}", relative=_RELATIVE, absolute=_RELATIVE)


@SUITE.requirement(
    "EVL-RUN-03",
    "The same evaluation with the same seed SHOULD come to the same result.",
)
async def _repeats_itself(context: Evaluators) -> None:
    names = await task_names(context)
    one, other = [(await evaluate(context, names))[-1].summary for _ in range(2)]
    check_equal(list(other.aggregates), list(one.aggregates), "the aggregates of the same seed")


@SUITE.requirement(
    "EVL-RUN-04",
    "An unknown task MUST be NOT_FOUND TASK_NOT_FOUND; a task twice, or no model, INVALID_ARGUMENT FIELD_INVALID.",
    quote="NOT_FOUND TASK_NOT_FOUND",
)
async def _unknown(context: Evaluators) -> None:
    [name, *_] = await task_names(context)
    call = evaluate(context, [name, "no-task-is-called-so"])
    await check_refused(call, "NOT_FOUND", "TASK_NOT_FOUND", what="an unknown task")
    await check_refused(evaluate(context, [name, name]), "INVALID_ARGUMENT", "FIELD_INVALID", what="a task twice")
    call = evaluate(context, [name], model=pb.EvaluatedModel())
    await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what="an evaluation of no model")


@SUITE.requirement(
    "EVL-RUN-05",
    "A stream that its caller leaves MUST leave the adapter serving.",
)
async def _leaves(context: Evaluators) -> None:
    names = await task_names(context)
    for _ in range(4):
        async with aclosing(context.stub.Evaluate(evaluate_request(context, names))) as stream:
            await anext(stream)
    check_equal((await evaluate(context, names))[-1].WhichOneof("event"), "summary", "the end of the next evaluation")


@SUITE.requirement(
    "EVL-CAP-01",
    "A checkpoint MUST be UNIMPLEMENTED CAPABILITY_MISSING where evaluator.checkpoint is not declared.",
    quote="A checkpoint. Needs the capability `evaluator.checkpoint`.",
    without="evaluator.checkpoint",
)
async def _no_checkpoints(context: Evaluators) -> None:
    call = evaluate(context, await task_names(context), model=pb.EvaluatedModel(checkpoint_uri="file:///checkpoint"))
    await check_refused(call, "UNIMPLEMENTED", "CAPABILITY_MISSING", what="an evaluation of a checkpoint")


@SUITE.requirement(
    "EVL-CAP-02",
    "A server MUST be UNIMPLEMENTED CAPABILITY_MISSING where evaluator.endpoint is not declared.",
    quote="A server that somebody runs. Needs the capability `evaluator.endpoint`.",
    without="evaluator.endpoint",
)
async def _no_endpoints(context: Evaluators) -> None:
    endpoint = pb.ModelEndpoint(uri="http://127.0.0.1:9/v1", model="m")
    call = evaluate(context, await task_names(context), model=pb.EvaluatedModel(endpoint=endpoint))
    await check_refused(call, "UNIMPLEMENTED", "CAPABILITY_MISSING", what="an evaluation of a server")


@SUITE.requirement(
    "EVL-REPORT-01",
    "GenerateReport MUST write a finished evaluation up in Markdown and as JSON with its aggregates.",
    quote="A JSON object, for programs; it has the keys evaluation_id and aggregates.",
)
async def _reports(context: Evaluators) -> None:
    summary = (await evaluate(context, await task_names(context)))[-1].summary
    for format in (pb.REPORT_FORMAT_UNSPECIFIED, pb.REPORT_FORMAT_MARKDOWN):
        request = pb.GenerateReportRequest(evaluation_id=summary.evaluation_id, format=format)
        written = await context.stub.GenerateReport(request)
        check_equal(written.media_type, "text/markdown", "the media type of Markdown")
        check(bool(written.report), "a report", "an empty one")
    request = pb.GenerateReportRequest(evaluation_id=summary.evaluation_id, format=pb.REPORT_FORMAT_JSON)
    written = await context.stub.GenerateReport(request)
    check_equal(written.media_type, "application/json", "the media type of JSON")
    report = json.loads(written.report)
    check_equal(report.get("evaluation_id"), summary.evaluation_id, "evaluation_id in the JSON report")
    check_equal(len(report.get("aggregates", ())), len(summary.aggregates), "the number of aggregates in it")


@SUITE.requirement(
    "EVL-REPORT-02",
    "An unknown evaluation MUST be NOT_FOUND EVALUATION_NOT_FOUND, one at work FAILED_PRECONDITION "
    "EVALUATION_UNFINISHED.",
    quote="FAILED_PRECONDITION EVALUATION_UNFINISHED.",
)
async def _no_reports(context: Evaluators) -> None:
    call = context.stub.GenerateReport(pb.GenerateReportRequest(evaluation_id="no-evaluation-is-called-so"))
    await check_refused(call, "NOT_FOUND", "EVALUATION_NOT_FOUND", what="the report of an unknown evaluation")
    request = evaluate_request(context, await task_names(context))
    async with aclosing(context.stub.Evaluate(request)) as stream:
        started = (await anext(stream)).started
        call = context.stub.GenerateReport(pb.GenerateReportRequest(evaluation_id=started.evaluation_id))
        try:
            await call
        except KitchenError as error:  # it may have finished by now
            expected = "the report of one at work to be refused with EVALUATION_UNFINISHED"
            check_is(error, "FAILED_PRECONDITION", "EVALUATION_UNFINISHED", expected=expected)
