"""Folding a log with a crash in it, and progress by hand."""

from __future__ import annotations

from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2
from crucible.type.v1 import failure_pb2
from crucible_client import ProgressTracker, RunView, fold


def log(*entries: tuple[int, int, float, Any], path: str = "") -> list[event_pb2.RunEvent]:
    """(attempt, step, time in seconds, payload) as events numbered from 1."""
    made = []
    for sequence, (attempt, step, seconds, payload) in enumerate(entries, 1):
        name = next(
            each.name
            for each in event_pb2.RunEvent.DESCRIPTOR.oneofs_by_name["payload"].fields
            if each.message_type is payload.DESCRIPTOR
        )
        event = event_pb2.RunEvent(sequence=sequence, run_id="r", attempt=attempt, step=step, stage_path=path)
        event.time.FromNanoseconds(int(seconds * 1e9))
        getattr(event, name).CopyFrom(payload)
        getattr(event, name).SetInParent()
        made.append(event)
    return made


def state(value: event_pb2.RunState, **more: Any) -> event_pb2.RunStateChanged:
    return event_pb2.RunStateChanged(to_state=value, **more)


def step(loss: float, tokens: float = 0) -> event_pb2.StepCompleted:
    return event_pb2.StepCompleted(metrics={"train/loss": loss, "train/input_tokens": tokens})


def evaluation(nll: float) -> event_pb2.EvaluationCompleted:
    return event_pb2.EvaluationCompleted(metrics={"eval/heldout/mean_nll": nll})


CHECKPOINT = event_pb2.Checkpoint(uri="file:///c", step=1)
CRASHED = log(
    (0, 0, 0, state(event_pb2.RUN_STATE_CREATED)),
    (0, 0, 0, state(event_pb2.RUN_STATE_QUEUED)),
    (0, 0, 0, state(event_pb2.RUN_STATE_RUNNING)),
    (1, 0, 0, event_pb2.AttemptStarted(attempt=1)),
    (1, 0, 0, event_pb2.RunPlanned(total_steps=3)),
    (1, 0, 0, evaluation(9)),
    (1, 1, 0, step(5)),
    (1, 1, 0, event_pb2.CheckpointSaved(checkpoint=CHECKPOINT)),
    (1, 2, 0, step(4)),
    (1, 2, 0, evaluation(8)),
    # The server died here, after step 2, and goes on from step 1.
    (2, 1, 0, event_pb2.AttemptStarted(attempt=2, from_checkpoint=CHECKPOINT)),
    (2, 2, 0, step(3)),
    (2, 2, 0, evaluation(7)),
    (2, 3, 0, step(2)),
    (2, 3, 0, event_pb2.ModelRegistered(version_id="v", model_name="m")),
    (2, 3, 0, state(event_pb2.RUN_STATE_COMPLETED)),
)


def test_steps_are_folded_by_the_highest_attempt() -> None:
    view = fold(CRASHED)
    assert {number: (each.attempt, each.metrics["train/loss"]) for number, each in view.steps.items()} == {
        1: (1, 5),
        2: (2, 3),
        3: (2, 2),
    }
    assert [(at, each.metrics["eval/heldout/mean_nll"]) for at, each in view.evaluations] == [(0, 9), (2, 7)]
    assert (view.step, view.total_steps, view.attempt) == (3, 3, 2)
    assert (view.state, view.ended, view.model_version_id) == (event_pb2.RUN_STATE_COMPLETED, True, "v")
    assert view.checkpoint == CHECKPOINT
    assert view.last_sequence == len(CRASHED)


def test_an_older_attempt_never_wins_whatever_the_order_of_the_log() -> None:
    late = log((2, 1, 0, step(1)), (1, 1, 0, step(9)))
    assert fold(late).steps[1].attempt == 2


def test_a_new_attempt_begins_at_its_checkpoint() -> None:
    view = fold(CRASHED[:11])
    assert (view.step, view.attempt) == (1, 2)
    assert sorted(view.steps) == [1, 2]


def test_events_seen_twice_change_nothing() -> None:
    view = fold(CRASHED)
    again = fold([*CRASHED, *CRASHED[3:9]])
    assert again == view


def test_unknown_payloads_are_skipped() -> None:
    view = RunView()
    view.apply(event_pb2.RunEvent(sequence=1, run_id="r"))
    assert (view.last_sequence, view.state) == (1, event_pb2.RUN_STATE_UNSPECIFIED)


def test_a_failure_stands_until_the_run_goes_on() -> None:
    failed = state(event_pb2.RUN_STATE_FAILED, reason="bad row", failure=failure_pb2.Failure(reason="ROW_INVALID"))
    view = fold(log((1, 0, 0, failed)))
    assert view.failure is not None
    assert (view.failure.reason, view.reason, view.ended) == ("ROW_INVALID", "bad row", True)
    view = fold(log((1, 0, 0, failed), (1, 0, 0, state(event_pb2.RUN_STATE_QUEUED))))
    assert (view.failure, view.ended) == (None, False)


def test_a_run_waits_for_an_adapter_until_it_goes_on_or_is_paused() -> None:
    paused = event_pb2.RUN_STATE_PAUSED
    waits = state(paused, waiting_for_port="blob", failure=failure_pb2.Failure(reason="ADAPTER_UNAVAILABLE"))
    view = fold(log((1, 0, 0, waits)))
    assert view.failure is not None
    assert (view.state, view.waiting_for_port, view.ended) == (paused, "blob", False)
    for next_state in (state(paused), state(event_pb2.RUN_STATE_QUEUED)):
        view = fold(log((1, 0, 0, waits), (1, 0, 0, next_state)))
        assert (view.waiting_for_port, view.failure) == ("", None)


def test_checkpoints_that_are_deleted_are_no_more_there() -> None:
    saved = [event_pb2.Checkpoint(uri=f"file:///step-{number}", step=number) for number in range(1, 4)]
    events: list[Any] = [(1, each.step, 0, event_pb2.CheckpointSaved(checkpoint=each)) for each in saved]
    events.insert(2, (1, 2, 0, event_pb2.CheckpointDeleted(checkpoint=saved[0])))
    view = fold(log(*events))
    assert (view.checkpoint, list(view.checkpoints.values())) == (saved[2], saved[1:])
    # Whoever deletes the newest leaves the one before.
    view = fold(log(*events, (1, 3, 0, event_pb2.CheckpointDeleted(checkpoint=saved[2]))))
    assert (view.checkpoint, list(view.checkpoints)) == (saved[1], [saved[1].uri])
    gone = [(1, 3, 0, event_pb2.CheckpointDeleted(checkpoint=each)) for each in saved[1:]]
    assert fold(log(*events, *gone)).checkpoint is None


def test_a_summary_stands_until_the_next_attempt() -> None:
    summary = event_pb2.RunSummary(steps=3)
    stopped = [
        (1, 3, 0, event_pb2.RunSummarized(summary=summary)),
        (1, 3, 0, state(event_pb2.RUN_STATE_PAUSED)),
    ]
    assert fold(log(*stopped)).summary == summary
    assert fold(log(*stopped, (2, 3, 0, event_pb2.AttemptStarted(attempt=2)))).summary is None


def tracked(*entries: tuple[int, int, float, Any]) -> Any:
    tracker = ProgressTracker()
    for event in log(*entries):
        tracker.apply(event)
    return tracker.progress


def test_progress_is_unknown_before_the_first_step() -> None:
    progress = tracked((1, 0, 0, event_pb2.RunPlanned(total_steps=10)))
    assert (progress.step, progress.total_steps) == (0, 10)
    assert (progress.loss, progress.tokens_per_second, progress.seconds_left) == (None, None, None)


def test_progress_by_hand() -> None:
    """Loading takes 100 s, which says nothing about the pace; then 2 s and 4 s for 30 and 60 tokens."""
    progress = tracked(
        (1, 0, 0, event_pb2.AttemptStarted(attempt=1)),
        (1, 0, 0, event_pb2.StageStarted(stage="load_dataset")),
        (1, 0, 90, event_pb2.RunPlanned(total_steps=10)),
        (1, 0, 100, event_pb2.StageStarted(stage="begin_epoch")),
        (1, 1, 102, step(5, 30)),
        (1, 2, 106, step(4, 60)),
    )
    assert (progress.step, progress.total_steps, progress.loss) == (2, 10, 4)
    assert progress.tokens_per_second == pytest.approx(90 / 6)
    assert progress.seconds_left == pytest.approx(8 * 3)


def test_the_pace_is_that_of_the_newest_steps() -> None:
    slow = [(1, number, 10.0 * number, step(1, 1)) for number in range(1, 31)]
    quick = [(1, 30 + number, 300.0 + number, step(1, 1)) for number in range(1, 21)]
    progress = tracked((1, 0, 0, event_pb2.RunPlanned(total_steps=60)), *slow, *quick)
    assert progress.seconds_left == pytest.approx(10 * 1)


def test_a_new_attempt_measures_anew() -> None:
    progress = tracked(
        (1, 0, 0, event_pb2.RunPlanned(total_steps=4)),
        (1, 1, 1, step(5, 10)),
        (1, 2, 2, step(4, 10)),
        (2, 1, 1000, event_pb2.AttemptStarted(attempt=2, from_checkpoint=CHECKPOINT)),
        (2, 1, 1010, event_pb2.StageStarted(stage="begin_epoch")),
        (2, 2, 1015, step(3, 10)),
    )
    assert (progress.step, progress.seconds_left, progress.tokens_per_second) == (2, 10, 2)


def test_at_the_end_nothing_is_left() -> None:
    progress = tracked(
        (1, 0, 0, event_pb2.RunPlanned(total_steps=2)),
        (1, 1, 1, step(5, 10)),
        (1, 2, 2, step(4, 10)),
    )
    assert progress.seconds_left == 0
