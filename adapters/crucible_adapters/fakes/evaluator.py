"""An evaluator with two tasks, whose scores follow from seeds and the names of models."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from pydantic import BaseModel, Field

from crucible.port.evaluator.v1 import evaluator_pb2, evaluator_pb2_grpc
from crucible.type.v1 import usage_pb2
from crucible_adapters.fakes.evaluation_tasks import TASKS, Task, aggregate, describe, solve
from crucible_adapters.fakes.providers import count_tokens
from crucible_adapters.fakes.seeded import plain, to_json
from crucible_adapters.listing import page
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.determinism import derive_seed
from crucible_kit.errors import (
    FailedPreconditionError,
    NotFoundError,
    ResourceExhaustedError,
    capability_missing,
    field_error,
)
from crucible_kit.messages import message_text
from crucible_kit.settings import parse_settings

_KEPT = 16
_MISSING = "missing"
_RETRY_SECONDS = 1.0
_Summaries = OrderedDict[str, evaluator_pb2.EvaluationSummary | None]


class FakeEvaluatorOptions(AdapterOptions):
    """What its scores follow from."""

    seed: int = Field(default=0, description="Seed of how good models are and which samples they solve.")
    max_evaluations: int = Field(default=4, ge=1, description="Evaluations at the same time.")


class FakeEvaluator(evaluator_pb2_grpc.EvaluatorServiceServicer):
    """Tasks that no model is asked about. A model or checkpoint whose name ends with `missing` is not found, one with
    `broken` never answers, and one with `flaky` not always.
    """

    description = AdapterDescription(
        name="fake-evaluator",
        port="evaluator",
        capabilities=("evaluator.checkpoint",),
        options=FakeEvaluatorOptions,
    )

    def __init__(self, options: FakeEvaluatorOptions, context: AdapterContext) -> None:
        self._options = options
        # None: not finished.
        self._summaries: _Summaries = OrderedDict()
        self._started = 0

    async def close(self) -> None:
        """Forgets the evaluations."""
        self._summaries.clear()

    async def ListTasks(self, request: evaluator_pb2.ListTasksRequest, context: Any) -> evaluator_pb2.ListTasksResponse:
        tasks = [describe(TASKS[name]) for name in sorted(TASKS) if name.startswith(request.prefix)]
        shown, token = page(tasks, lambda each: each.name, request, "ListTasks", request.prefix)
        return evaluator_pb2.ListTasksResponse(tasks=shown, next_page_token=token)

    async def Evaluate(
        self, request: evaluator_pb2.EvaluateRequest, context: Any
    ) -> AsyncIterator[evaluator_pb2.EvaluateResponse]:
        model = _model(request.model)
        selected = _selected(request)
        running = sum(summary is None for summary in self._summaries.values())
        if running >= self._options.max_evaluations:
            raise ResourceExhaustedError(
                f"{running} evaluations are at work, at most {self._options.max_evaluations} may be: wait for one",
                reason="TOO_MANY_EVALUATIONS",
                metadata={"limit": self._options.max_evaluations},
                retry_delay=_RETRY_SECONDS,
            )
        self._started += 1
        evaluation_id = f"evaluation-{self._started}"
        self._summaries[evaluation_id] = None
        try:
            counts = [min(request.limit or task.num_samples, task.num_samples) for task, _ in selected]
            yield evaluator_pb2.EvaluateResponse(
                started=evaluator_pb2.EvaluationStarted(evaluation_id=evaluation_id, num_samples=sum(counts))
            )
            samples = []
            for (task, options), count in zip(selected, counts, strict=True):
                for number in self._order(request, task, count):
                    sample = self._solve(request, task, options, number, model)
                    samples.append(sample)
                    yield evaluator_pb2.EvaluateResponse(sample=sample)
            summary = _summarise(evaluation_id, samples)
            self._finish(evaluation_id, summary)
            yield evaluator_pb2.EvaluateResponse(summary=summary)
        finally:
            # One whose stream broke is gone.
            if evaluation_id in self._summaries and self._summaries[evaluation_id] is None:
                del self._summaries[evaluation_id]

    def _order(self, request: evaluator_pb2.EvaluateRequest, task: Task, count: int) -> list[int]:
        """The order in which samples are finished: none that anybody may rely on."""
        seed = derive_seed(self._options.seed, "order", request.seed, task.name)
        return np.random.default_rng(seed).permutation(count).tolist()

    def _solve(
        self, request: evaluator_pb2.EvaluateRequest, task: Task, options: BaseModel, number: int, model: str
    ) -> evaluator_pb2.EvaluationSample:
        # At temperature 0 a model has no choice.
        chosen = request.seed if not request.HasField("temperature") or request.temperature > 0 else ""
        return solve(
            task,
            options,
            number,
            model=model,
            seed=(self._options.seed, chosen),
            max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
        )

    def _finish(self, evaluation_id: str, summary: evaluator_pb2.EvaluationSummary) -> None:
        self._summaries[evaluation_id] = summary
        self._summaries.move_to_end(evaluation_id)
        finished = [name for name, each in self._summaries.items() if each is not None]
        for name in finished[:-_KEPT]:
            del self._summaries[name]

    async def GenerateReport(
        self, request: evaluator_pb2.GenerateReportRequest, context: Any
    ) -> evaluator_pb2.GenerateReportResponse:
        name = request.evaluation_id
        if name not in self._summaries:
            raise NotFoundError(
                f"evaluation_id: there is no evaluation {name!r}, or it was too long ago",
                reason="EVALUATION_NOT_FOUND",
                metadata={"evaluation_id": name},
            )
        summary = self._summaries[name]
        if summary is None:
            raise FailedPreconditionError(
                f"{name} is still at work: read its stream to the end",
                reason="EVALUATION_UNFINISHED",
                metadata={"evaluation_id": name},
            )
        if request.format == evaluator_pb2.REPORT_FORMAT_JSON:
            report = to_json(MessageToDict(summary, preserving_proto_field_name=True))
            return evaluator_pb2.GenerateReportResponse(report=report, media_type="application/json")
        return evaluator_pb2.GenerateReportResponse(report=_markdown(summary), media_type="text/markdown")


def _model(model: evaluator_pb2.EvaluatedModel) -> str:
    kind = model.WhichOneof("model")
    if kind is None:
        raise field_error("model", "is empty: set name, checkpoint_uri or endpoint")
    if kind == "endpoint":
        raise capability_missing("evaluator", "evaluator.endpoint", "name a model or a checkpoint")
    name = getattr(model, kind)
    if not name:
        raise field_error(f"model.{kind}", "is empty")
    if name.endswith(_MISSING):
        raise NotFoundError(
            f"model.{kind}: there is no {name!r}",
            reason="MODEL_NOT_FOUND" if kind == "name" else "CHECKPOINT_NOT_FOUND",
            metadata={"field": f"model.{kind}"},
        )
    return name


def _selected(request: evaluator_pb2.EvaluateRequest) -> list[tuple[Task, BaseModel]]:
    selected = []
    for number, each in enumerate(request.tasks):
        where = f"tasks[{number}]"
        if each.name not in TASKS:
            raise NotFoundError(
                f"{where}.name: there is no task {each.name!r}; there are {', '.join(sorted(TASKS))}",
                reason="TASK_NOT_FOUND",
                metadata={"field": f"{where}.name", "task": each.name},
            )
        if any(task.name == each.name for task, _ in selected):
            raise field_error(f"{where}.name", f"{each.name!r} is there twice")
        task = TASKS[each.name]
        options = parse_settings(task.options, plain(each.options), where=f"{where}.options", reason="FIELD_INVALID")
        selected.append((task, options))
    return selected


def _summarise(evaluation_id: str, samples: list[evaluator_pb2.EvaluationSample]) -> evaluator_pb2.EvaluationSummary:
    values: dict[tuple[str, str], list[float]] = {}
    for sample in samples:
        for scorer, score in sample.scores.items():
            if score.HasField("value"):
                values.setdefault((sample.task, scorer), []).append(score.value)
    if not values:
        raise FailedPreconditionError(
            f"none of the {len(samples)} samples of {evaluation_id} was scored: the first says why",
            reason="NOTHING_SCORED",
            metadata={"evaluation_id": evaluation_id, "first": samples[0].error.status.message},
        )
    answered = [each for each in samples if not each.HasField("error")]
    return evaluator_pb2.EvaluationSummary(
        evaluation_id=evaluation_id,
        aggregates=[aggregate(task, scorer, values[task, scorer]) for task, scorer in sorted(values)],
        num_errors=len(samples) - len(answered),
        usage=usage_pb2.TokenUsage(
            input_tokens=sum(count_tokens(message_text(each.input[0])) for each in answered),
            output_tokens=sum(count_tokens(each.output) for each in answered),
        ),
        cost=usage_pb2.Cost(amount=0.0, currency="USD"),
    )


def _markdown(summary: evaluator_pb2.EvaluationSummary) -> str:
    lines = [f"# {summary.evaluation_id}", "", "| task | scorer | mean | count |", "|---|---|---|---|"]
    lines += [f"| {each.task} | {each.scorer} | {each.mean:.4f} | {each.count} |" for each in summary.aggregates]
    return "\n".join([*lines, "", f"Samples with an error: {summary.num_errors}", ""])
