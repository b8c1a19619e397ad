"""A fake kitchen as a process of its own: a run's preset says what happens to it. Prints its addresses as JSON.

Not the real server: no store, no workflow, no training. It plays events so that the commands have something to show.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from typing import Any

from google.protobuf.json_format import MessageToJson

from crucible.kitchen.v1 import adapter_admin_pb2, catalog_pb2, event_pb2, run_pb2
from crucible_client.fold import ENDED_STATES
from crucible_kit.errors import (
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    UnauthenticatedError,
    to_failure,
)
from tests.client.fake_kitchen import FakeKitchen, served

TOKEN = "a-token-of-the-tests"
PROMPT, TARGET = "How many?", "Three."


def evaluation(nll: float, output: str) -> event_pb2.EvaluationCompleted:
    sample = event_pb2.EvaluationSample(prompt=PROMPT, target=TARGET, output=output)
    metrics = {"eval/heldout/mean_nll": nll, "eval/heldout/unigram_nll": 4.0, "eval/heldout/tokens": 100.0}
    return event_pb2.EvaluationCompleted(metrics=metrics, samples=[sample])


def evaluation_summary(event: event_pb2.RunEvent) -> event_pb2.EvaluationSummary:
    done = event.evaluation_completed
    return event_pb2.EvaluationSummary(step=event.step, metrics=done.metrics, sample=done.samples[0])


class FakeRuns:
    """Runs that happen at once, in memory."""

    def __init__(self) -> None:
        self.runs: dict[str, run_pb2.Run] = {}
        self.logs: dict[str, list[event_pb2.RunEvent]] = defaultdict(list)
        self.changed = asyncio.Condition()

    async def emit(self, run: run_pb2.Run, **payload: Any) -> None:
        if "state_changed" in payload:
            run.state = payload["state_changed"].to_state
            run.waiting_for_port = payload["state_changed"].waiting_for_port
        log = self.logs[run.run_id]
        event = event_pb2.RunEvent(
            sequence=len(log) + 1, run_id=run.run_id, attempt=run.attempt, step=run.step, **payload
        )
        event.time.FromSeconds(1_800_000_000 + len(log))
        run.last_sequence = event.sequence
        async with self.changed:
            log.append(event)
            self.changed.notify_all()

    async def state(self, run: run_pb2.Run, name: str, **more: Any) -> None:
        state = getattr(event_pb2, f"RUN_STATE_{name}")
        if state in ENDED_STATES or name == "PAUSED":
            await self.summarize(run)
        await self.emit(run, state_changed=event_pb2.RunStateChanged(to_state=state, **more))

    async def summarize(self, run: run_pb2.Run) -> None:
        summary = event_pb2.RunSummary(steps=run.step, input_tokens=500 * run.step, trained_tokens=100 * run.step)
        if run.step:
            summary.seconds, summary.tokens_per_second = 12.4, 1000.0
            summary.first_train_loss, summary.last_train_loss = 4.0, 8.0 / 2**run.step
        evaluated = [each for each in self.logs[run.run_id] if each.HasField("evaluation_completed")]
        if evaluated:
            summary.first_evaluation.CopyFrom(evaluation_summary(evaluated[0]))
            summary.last_evaluation.CopyFrom(evaluation_summary(evaluated[-1]))
        run.summary.CopyFrom(summary)
        await self.emit(run, summarized=event_pb2.RunSummarized(summary=summary))

    async def steps(self, run: run_pb2.Run, last: int) -> None:
        while run.step < last:
            run.step += 1
            metrics = {"train/loss": 8.0 / 2**run.step, "train/input_tokens": 500.0, "time/step": 0.5}
            await self.emit(run, step_completed=event_pb2.StepCompleted(metrics=metrics))

    async def checkpoint(self, run: run_pb2.Run, *, final: bool) -> None:
        run.latest_checkpoint.CopyFrom(event_pb2.Checkpoint(uri="file:///kept%20here", step=run.step, final=final))
        await self.emit(run, checkpoint_saved=event_pb2.CheckpointSaved(checkpoint=run.latest_checkpoint))

    async def create(self, request: run_pb2.CreateRunRequest) -> run_pb2.CreateRunResponse:
        if request.recipe != "sl_basic":
            raise NotFoundError("recipe 'x': unknown", reason="RECIPE_NOT_FOUND", metadata={"recipe": request.recipe})
        if "lerning_rate" in request.config:
            wrong = [FieldViolation("config.lerning_rate", "unknown key; did you mean learning_rate?")]
            raise InvalidArgumentError("config.lerning_rate: unknown key", reason="CONFIG_INVALID", fields=wrong)
        run = run_pb2.Run(
            run_id=request.run_id or f"run-{len(self.runs) + 1}",
            recipe=request.recipe,
            preset=request.preset,
            config=request.config,
            seed=request.seed,
            labels=request.labels,
            total_steps=4,
        )
        run.create_time.FromSeconds(1_800_000_000)
        self.runs[run.run_id] = run
        await self.state(run, "CREATED")
        await self.state(run, "QUEUED")
        answer = run_pb2.CreateRunResponse(run=run)
        await self.begin(run)
        return answer

    async def begin(self, run: run_pb2.Run) -> None:
        run.attempt += 1
        await self.state(run, "RUNNING")
        await self.emit(run, attempt_started=event_pb2.AttemptStarted(attempt=run.attempt))
        await self.emit(run, planned=event_pb2.RunPlanned(total_steps=4, num_rows=8))
        if run.preset == "fails":
            failure = to_failure(InvalidArgumentError("row 3 has no answer", reason="ROW_INVALID"))
            run.failure.CopyFrom(failure)
            await self.state(run, "FAILED", reason="row 3 has no answer", failure=failure)
            return
        await self.emit(run, evaluation_completed=evaluation(6.0, "count count"))
        if run.preset in ("adapter-away", "adapter-returns"):
            await self.state(run, "PAUSED", reason="nobody answers", waiting_for_port="blob")
            if run.preset == "adapter-away":
                return
            await self.state(run, "RUNNING")
        if run.preset in ("waits", "never-pauses"):
            await self.steps(run, 1)
        else:
            await self.finish(run)

    async def finish(self, run: run_pb2.Run) -> None:
        await self.steps(run, 4)
        await self.checkpoint(run, final=True)
        await self.emit(run, evaluation_completed=evaluation(1.5, "Three."))
        run.model_version_id = "mv-1"
        await self.emit(run, model_registered=event_pb2.ModelRegistered(version_id="mv-1", model_name="m"))
        await self.state(run, "COMPLETED")

    async def pause(self, request: run_pb2.PauseRunRequest) -> run_pb2.PauseRunResponse:
        run = self.find(request.run_id)
        if run.state in ENDED_STATES:
            raise FailedPreconditionError("it has ended", reason="RUN_STATE")
        run.pause_requested = True
        answer = run_pb2.PauseRunResponse(run=run)
        if run.preset == "waits":
            await self.checkpoint(run, final=False)
            await self.state(run, "PAUSED")
        return answer

    async def resume(self, request: run_pb2.ResumeRunRequest) -> run_pb2.ResumeRunResponse:
        run = self.find(request.run_id)
        run.attempt += 1
        await self.state(run, "QUEUED")
        answer = run_pb2.ResumeRunResponse(run=run)
        await self.state(run, "RUNNING")
        started = event_pb2.AttemptStarted(attempt=run.attempt, from_checkpoint=run.latest_checkpoint)
        await self.emit(run, attempt_started=started)
        await self.finish(run)
        return answer

    async def cancel(self, request: run_pb2.CancelRunRequest) -> run_pb2.CancelRunResponse:
        run = self.find(request.run_id)
        await self.state(run, "CANCELLED", reason=request.reason)
        return run_pb2.CancelRunResponse(run=run)

    def find(self, run_id: str) -> run_pb2.Run:
        if run_id not in self.runs:
            raise NotFoundError(f"run {run_id!r} does not exist", reason="RUN_NOT_FOUND", metadata={"run_id": run_id})
        return self.runs[run_id]

    def list(self, request: run_pb2.ListRunsRequest) -> run_pb2.ListRunsResponse:
        wanted = [each for each in reversed(self.runs.values()) if not request.states or each.state in request.states]
        first = int(request.page_token or 0)
        last = first + min(request.page_size or 50, 2)  # small pages, so that commands have to turn them
        return run_pb2.ListRunsResponse(
            runs=wanted[first:last], next_page_token=str(last) if last < len(wanted) else ""
        )

    def events(self, request: run_pb2.ListRunEventsRequest) -> run_pb2.ListRunEventsResponse:
        self.find(request.run_id)
        log = self.logs[request.run_id][request.after_sequence :]
        return run_pb2.ListRunEventsResponse(events=log[: request.page_size or 50])

    async def watch(self, request: run_pb2.WatchRunRequest) -> AsyncIterator[run_pb2.WatchRunResponse]:
        run, log, position = self.find(request.run_id), self.logs[request.run_id], request.after_sequence
        while True:
            if position < len(log):
                yield run_pb2.WatchRunResponse(events=log[position:], last_sequence=len(log))
                position = len(log)
            if run.state in ENDED_STATES and position == len(log):
                return
            async with self.changed:
                await self.changed.wait_for(lambda: position < len(log))  # noqa: B023 - read while it waits


def catalog(kitchen: FakeKitchen) -> None:
    recipe = catalog_pb2.Recipe(
        name="sl_basic", description="Fine-tuning.", workflow="supervised", presets=[catalog_pb2.Preset(name="tiny")]
    )
    recipe.presets[0].config.update({"batch_size": 16})
    full = catalog_pb2.Recipe()
    full.CopyFrom(recipe)
    properties = {
        "batch_size": {"type": "integer", "default": 128, "description": "Rows of a step."},
        "lr_schedule": {"enum": ["constant", "linear"], "type": "string", "default": "linear", "description": "How."},
        "dataset": {"type": "string", "description": "Rows."},
    }
    full.config_schema.update({"properties": properties, "required": ["dataset"]})
    blob = adapter_admin_pb2.Adapter(
        port="blob",
        target="builtin:local",
        state=adapter_admin_pb2.ADAPTER_STATE_READY,
        source=adapter_admin_pb2.ADAPTER_SOURCE_DEFAULT,
        name="local",
        version="1",
    )

    def add(request: adapter_admin_pb2.AddAdapterRequest) -> adapter_admin_pb2.AddAdapterResponse:
        """Tells in the adapter's detail what was asked for."""
        if request.port == "training" and not request.force:
            raise FailedPreconditionError("in use by run r", reason="ADAPTER_IN_USE")
        asked = MessageToJson(request, indent=None, preserving_proto_field_name=True)
        added = adapter_admin_pb2.Adapter(port=request.port, target=request.mapping.adapter, detail=asked)
        added.source = adapter_admin_pb2.ADAPTER_SOURCE_ADDED
        return adapter_admin_pb2.AddAdapterResponse(adapter=None if request.validate_only else added)

    def remove(request: adapter_admin_pb2.RemoveAdapterRequest) -> adapter_admin_pb2.RemoveAdapterResponse:
        return adapter_admin_pb2.RemoveAdapterResponse(adapter=blob if request.port == "blob" else None)

    stage = catalog_pb2.Stage(name="evaluate", description="Scores.", ports=["training"])
    kitchen.answers.update(
        ListRecipes=catalog_pb2.ListRecipesResponse(recipes=[recipe]),
        GetRecipe=catalog_pb2.GetRecipeResponse(recipe=full),
        ListStages=catalog_pb2.ListStagesResponse(stages=[stage]),
        ListAdapters=adapter_admin_pb2.ListAdaptersResponse(adapters=[blob]),
        ProbeAdapter=adapter_admin_pb2.ProbeAdapterResponse(adapter=blob),
        AddAdapter=add,
        RemoveAdapter=remove,
    )


def guard(method: str, metadata: Mapping[str, str | bytes]) -> None:
    if metadata.get("authorization") != f"Bearer {TOKEN}":
        raise UnauthenticatedError("no token", reason="TOKEN_MISSING")


async def main() -> None:
    """Serves until stdin closes."""
    kitchen, runs = FakeKitchen(), FakeRuns()
    catalog(kitchen)
    kitchen.watches = [runs.watch]
    kitchen.answers.update(
        CreateRun=runs.create,
        PauseRun=runs.pause,
        ResumeRun=runs.resume,
        CancelRun=runs.cancel,
        GetRun=lambda request: run_pb2.GetRunResponse(run=runs.find(request.run_id)),
        ListRuns=runs.list,
        ListRunEvents=runs.events,
    )
    async with served(kitchen, "127.0.0.1:0") as open_address, served(kitchen, guard=guard) as guarded_address:
        print(json.dumps({"open": open_address, "guarded": guarded_address}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
