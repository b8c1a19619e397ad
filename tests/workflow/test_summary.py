"""What a run came to: by hand over a log with a crash in it, and over runs that really stopped and went on."""

from __future__ import annotations

from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible_kit.errors import PermissionDeniedError, UnavailableError
from crucible_kitchen.runs.summary import SummaryFold
from tests.workflow.kitchen import Kitchen, payloads

RUNNING, QUEUED = event_pb2.RUN_STATE_RUNNING, event_pb2.RUN_STATE_QUEUED
PAUSED, CANCELLING = event_pb2.RUN_STATE_PAUSED, event_pb2.RUN_STATE_CANCELLING


def step(loss: float, read: float, seconds: float) -> event_pb2.StepCompleted:
    metrics = {"train/loss": loss, "train/tokens": read / 2, "train/input_tokens": read, "time/step": seconds}
    return event_pb2.StepCompleted(metrics=metrics)


def evaluation(nll: float, prompt: str = "") -> event_pb2.EvaluationCompleted:
    samples = [event_pb2.EvaluationSample(prompt=prompt, output=f"{nll}")] if prompt else []
    return event_pb2.EvaluationCompleted(metrics={"eval/heldout/mean_nll": nll}, samples=samples)


def attempt(number: int, superseded: int = 0) -> event_pb2.AttemptStarted:
    return event_pb2.AttemptStarted(attempt=number, superseded_first_sequence=superseded)


def state(to: event_pb2.RunState) -> event_pb2.RunStateChanged:
    return event_pb2.RunStateChanged(to_state=to)


def folded(*entries: tuple[float, int, dict[str, Any]]) -> event_pb2.RunSummary:
    """The summary of (time in seconds, step, payload), numbered from 1."""
    fold = SummaryFold()
    for sequence, (seconds, at, payload) in enumerate(entries, 1):
        event = event_pb2.RunEvent(sequence=sequence, step=at, **payload)
        event.time.FromNanoseconds(int(seconds * 1e9))
        fold.apply(event)
    return fold.summary()


def test_by_hand() -> None:
    summary = folded(
        (0, 0, {"state_changed": state(QUEUED)}),
        (50, 0, {"state_changed": state(RUNNING)}),
        (50, 0, {"attempt_started": attempt(1)}),
        (60, 0, {"evaluation_completed": evaluation(9, prompt="p" * 2000)}),
        (61, 1, {"step_completed": step(5.0, 100, 1)}),
        (62, 1, {"checkpoint_saved": event_pb2.CheckpointSaved()}),  # sequence 6
        (63, 2, {"step_completed": step(4.0, 90, 1)}),
        (64, 2, {"evaluation_completed": evaluation(8)}),
        (65, 3, {"step_completed": step(3.5, 80, 1)}),
        # The server died, and 1000 s later the run goes on from step 1.
        (1065, 1, {"attempt_started": attempt(2, superseded=7)}),
        (1067, 2, {"step_completed": step(3.0, 60, 2)}),
        (1068, 2, {"evaluation_completed": evaluation(7, prompt="q")}),
        (1069, 2, {"state_changed": state(CANCELLING)}),
        (1070, 2, {"stage_completed": event_pb2.StageCompleted()}),
    )
    assert (summary.steps, summary.input_tokens, summary.trained_tokens) == (2, 160, 80)
    assert (summary.first_train_loss, summary.last_train_loss) == (5.0, 3.0)
    assert summary.tokens_per_second == pytest.approx(160 / 3)
    assert summary.seconds == pytest.approx(15 + 5), "to the last event of each attempt, no wait in between"
    first, last = summary.first_evaluation, summary.last_evaluation
    assert (first.step, first.metrics["eval/heldout/mean_nll"], first.sample.prompt) == (0, 9, "p" * 1000)
    assert (last.step, last.metrics["eval/heldout/mean_nll"], last.sample.output) == (2, 7, "7")


def test_a_pause_takes_no_time() -> None:
    summary = folded(
        (0, 0, {"attempt_started": attempt(1)}),
        (3, 1, {"step_completed": step(2.0, 10, 1)}),
        (4, 1, {"state_changed": state(PAUSED)}),
        (500, 1, {"state_changed": state(QUEUED)}),
        (600, 1, {"state_changed": state(RUNNING)}),
        (600, 1, {"attempt_started": attempt(2)}),
        (605, 2, {"step_completed": step(1.0, 10, 1)}),
    )
    assert (summary.seconds, summary.steps) == (3 + 5, 2)


def test_nothing_happened() -> None:
    summary = folded((0, 0, {"state_changed": state(QUEUED)}))
    assert summary == event_pb2.RunSummary()
    assert not summary.HasField("first_train_loss")


def test_steps_that_nobody_did_again_do_not_count() -> None:
    """A run that failed at step 3 went on from step 1 and was cancelled there."""
    summary = folded(
        (0, 0, {"attempt_started": attempt(1)}),
        (1, 1, {"step_completed": step(3.0, 10, 1)}),
        (1, 1, {"checkpoint_saved": event_pb2.CheckpointSaved()}),
        (2, 2, {"step_completed": step(2.0, 10, 1)}),
        (3, 1, {"attempt_started": attempt(2, superseded=4)}),
    )
    assert (summary.steps, summary.last_train_loss) == (1, 3.0)


def expected(events: list[event_pb2.RunEvent]) -> dict[str, float]:
    """By the contract's own rule: steps by (step, highest attempt)."""
    best: dict[int, event_pb2.RunEvent] = {}
    for event in events:
        if event.HasField("step_completed") and event.attempt >= (
            best[event.step].attempt if event.step in best else 0
        ):
            best[event.step] = event
    metrics = [best[number].step_completed.metrics for number in sorted(best)]
    read = sum(each["train/input_tokens"] for each in metrics)
    return {
        "steps": len(metrics),
        "trained_tokens": sum(each["train/tokens"] for each in metrics),
        "input_tokens": read,
        "first_train_loss": metrics[0]["train/loss"],
        "last_train_loss": metrics[-1]["train/loss"],
        "tokens_per_second": pytest.approx(read / sum(each["time/step"] for each in metrics)),  # type: ignore[dict-item]
    }


async def test_a_completed_run_ends_with_its_summary(kitchen: Kitchen, small: dict[str, Any]) -> None:
    config = {"eval_fraction": 0.25, "eval_at_start": True, "sample_prompts": 1, "model_name": "mine"}
    run = await kitchen.run(**small, **config)
    events = await kitchen.events(run)
    assert [event.WhichOneof("payload") for event in events[-2:]] == ["summarized", "state_changed"]
    summary = run.summary
    assert summary is not None and summary == events[-2].summarized.summary
    assert {name: getattr(summary, name) for name in expected(events)} == expected(events)
    assert (summary.steps, run.total_steps) == (5, 5)
    assert summary.checkpoint_uri.endswith("/final")
    assert summary.model_version_id == run.model_version_id != ""
    began = next(event.time.ToNanoseconds() for event in events if event.HasField("attempt_started"))
    assert summary.seconds == pytest.approx((events[-3].time.ToNanoseconds() - began) / 1e9, abs=1e-6)
    evaluated = [event for event in events if event.HasField("evaluation_completed")]
    for told, event in ((summary.first_evaluation, evaluated[0]), (summary.last_evaluation, evaluated[-1])):
        assert (told.step, told.metrics) == (event.step, event.evaluation_completed.metrics)
        assert told.sample == event.evaluation_completed.samples[0]
    assert (summary.first_evaluation.step, summary.last_evaluation.step) == (0, 5)


async def test_after_a_crash_it_is_that_of_an_undisturbed_run(kitchen: Kitchen, small: dict[str, Any]) -> None:
    config = small | {"save_every": 2, "eval_fraction": 0.1, "eval_every": 3}
    undisturbed = (await kitchen.run(**config)).summary
    crashed: list[int] = []

    def crash(at: int) -> None:
        # After step 3, in which there was an evaluation, the run goes on from step 2.
        if at == 4 and not crashed:
            crashed.append(at)
            raise UnavailableError("the engine died", reason="TEST")

    kitchen.training.before_step = crash
    run = await kitchen.run(**config)
    events = await kitchen.events(run)
    assert (run.state, run.attempt) == (event_pb2.RUN_STATE_COMPLETED, 2)
    assert len(payloads(events, "step_completed")) == 7, "step 3 was done twice"
    summary = run.summary
    assert summary is not None and undisturbed is not None
    assert {name: getattr(summary, name) for name in expected(events)} == expected(events)
    same = ("steps", "trained_tokens", "input_tokens", "first_train_loss", "last_train_loss")
    assert [getattr(summary, name) for name in same] == [getattr(undisturbed, name) for name in same]
    assert summary.first_evaluation == undisturbed.first_evaluation
    assert summary.last_evaluation == undisturbed.last_evaluation


async def test_a_run_that_fails_or_pauses_tells_how_far_it_came(kitchen: Kitchen, small: dict[str, Any]) -> None:
    created = await kitchen.create(**small)

    def stop(at: int) -> None:
        if at == 2:
            kitchen.manager._executors[created.run_id].control.pause = True
        if at == 5:
            raise PermissionDeniedError("not this one", reason="TEST")

    kitchen.training.before_step = stop
    paused = await kitchen.stopped(created)
    assert paused.state == PAUSED
    assert paused.summary is not None and paused.summary.steps == 2
    assert paused.summary.checkpoint_uri.endswith("/step-2")
    failed = await kitchen.resume(paused)
    assert failed.state == event_pb2.RUN_STATE_FAILED
    assert failed.summary is not None and failed.summary.steps == 4
    assert not failed.summary.model_version_id
    # While it runs it has none.
    seen: list[Any] = []
    original = kitchen.store.append

    async def append(run_id: str, events: Any, **more: Any) -> Any:
        record = await original(run_id, events, **more)
        if any(event.HasField("step_completed") for event in events):
            seen.append(record.summary)
        return record

    kitchen.store.append = append  # type: ignore[method-assign]
    kitchen.training.before_step = lambda at: None
    completed = await kitchen.resume(failed)
    assert completed.summary is not None and completed.summary.steps == 6
    assert seen and seen == [None] * len(seen)
    assert len(payloads(await kitchen.events(completed), "summarized")) == 3


async def test_a_run_that_never_ran_has_none(kitchen: Kitchen, small: dict[str, Any]) -> None:
    request = run_pb2.CreateRunRequest(recipe="sl_basic", hold=True)
    request.config.update(small)
    held = await kitchen.manager.create(request)
    cancelled = await kitchen.manager.cancel(held.run_id, "")
    assert (cancelled.state, cancelled.summary) == (event_pb2.RUN_STATE_CANCELLED, None)
    assert payloads(await kitchen.events(cancelled), "summarized") == []
