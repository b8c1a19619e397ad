from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta

import pytest

from crucible.kitchen.v1.event_pb2 import (
    RUN_STATE_CREATED,
    RUN_STATE_FAILED,
    RUN_STATE_PAUSED,
    RUN_STATE_QUEUED,
    RUN_STATE_RUNNING,
    RUN_STATE_UNSPECIFIED,
    RunEvent,
    RunSummary,
)
from crucible_kit.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    to_failure,
)
from crucible_kitchen.store import RequestKey, Store
from tests.server.fakes import (
    START,
    Clock,
    checkpoint,
    checkpoint_event,
    damaged_event,
    deleted_event,
    log_event,
    record,
    state_event,
)

UUID = "2f1c0d4e-9d0c-4a57-8f5e-2b9f0c8e7a11"


async def test_a_run_reads_back_as_it_was_stored(store: Store) -> None:
    failure = to_failure(FailedPreconditionError("no", reason="RUN_STATE", retry_delay=1.5), source="epochs/steps")
    created, new = await store.create_run(
        record(labels={"team": "blue"}, preset="tiny"), [state_event(RUN_STATE_CREATED)]
    )
    assert new
    saved = checkpoint(4)
    appended = await store.append(
        "run-1",
        [checkpoint_event(saved)],
        changes={
            "state": RUN_STATE_FAILED,
            "attempt": 1,
            "step": 4,
            "total_steps": 9,
            "pause_requested": True,
            "failure": failure,
            "start_time": START + timedelta(microseconds=1),
            "end_time": START + timedelta(microseconds=123457),
            "model_version_id": "model-1",
            "summary": RunSummary(steps=4, first_train_loss=0.0),
            "waiting_for_port": "blob",
        },
        checkpoint=saved,
    )
    expected = dataclasses.replace(
        created,
        state=RUN_STATE_FAILED,
        attempt=1,
        step=4,
        total_steps=9,
        pause_requested=True,
        failure=failure,
        start_time=START + timedelta(microseconds=1),
        end_time=START + timedelta(microseconds=123457),
        model_version_id="model-1",
        summary=RunSummary(steps=4, first_train_loss=0.0),
        waiting_for_port="blob",
        last_sequence=2,
        latest_checkpoint=dataclasses.replace(saved, sequence=2),
    )
    assert appended == expected
    assert await store.get_run("run-1") == expected
    assert await store.checkpoints("run-1") == [expected.latest_checkpoint]


async def test_events_are_filled_in_from_the_run_after_its_changes(store: Store, clock: Clock) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED), state_event(RUN_STATE_QUEUED)])
    clock.advance(1)
    given = log_event("x", stage_path="epochs/steps")
    await store.append("run-1", [given, log_event("y", step=2)], changes={"attempt": 1, "step": 5})
    created, queued, first, second = await store.read_events("run-1", 0, limit=10)
    assert created.state_changed.from_state == RUN_STATE_UNSPECIFIED
    assert queued.state_changed.from_state == RUN_STATE_CREATED
    assert (first.sequence, first.run_id, first.recipe, first.workflow, first.dataset) == (
        3,
        "run-1",
        "sl_basic",
        "supervised",
        "builtin:words",
    )
    assert (first.attempt, first.step, first.stage_path) == (1, 5, "epochs/steps")
    assert second.step == 2
    assert first.time.ToDatetime(START.tzinfo) == START + timedelta(seconds=1)
    assert given.sequence == 0, "the caller's event is not changed: it may be sent again"


async def test_sequences_are_dense_under_concurrent_appends(store: Store) -> None:
    for run in ("a", "b"):
        await store.create_run(record(run), [state_event(RUN_STATE_CREATED)])

    async def write(index: int) -> int:
        run = "ab"[index % 2]
        appended = await store.append(run, [log_event(f"{index}.0"), log_event(f"{index}.1")])
        return appended.last_sequence

    ends = await asyncio.gather(*(write(index) for index in range(100)))
    for number, run in enumerate("ab"):
        events = await store.read_events(run, 0, limit=1000)
        assert [each.sequence for each in events] == list(range(1, 102))
        messages = [each.log_recorded.message for each in events[1:]]
        # The two events of one append are neighbours, and the append knew where it stood.
        for place in range(0, 100, 2):
            index = int(messages[place].partition(".")[0])
            assert messages[place : place + 2] == [f"{index}.0", f"{index}.1"]
            assert ends[index] == place + 3
        assert sorted(ends[number::2]) == list(range(3, 102, 2))


async def test_a_failing_write_undoes_only_itself(store: Store) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    unstorable = checkpoint(1, position={"rows": {1, 2}})
    # Submitted together, they share one transaction.
    outcomes = await asyncio.gather(
        store.append("run-1", [log_event("before")]),
        store.append("run-1", [log_event("refused")], changes={"step": 99}, expect=[RUN_STATE_RUNNING]),
        store.append("missing", [log_event("nobody")]),
        # Fails after its events are written: a set is no JSON.
        store.append("run-1", [log_event("half"), checkpoint_event(unstorable)], checkpoint=unstorable),
        store.append("run-1", [log_event("after")]),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], FailedPreconditionError)
    assert isinstance(outcomes[2], NotFoundError)
    assert isinstance(outcomes[3], Exception) and "set is not JSON" in str(outcomes[3])
    events = await store.read_events("run-1", 1, limit=10)
    assert [each.log_recorded.message for each in events] == ["before", "after"]
    assert (await store.get_run("run-1")).step == 0


async def test_a_wrong_state_is_refused_with_both_states(store: Store) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    with pytest.raises(FailedPreconditionError, match=r"run-1.*is CREATED.*RUNNING, PAUSED") as caught:
        await store.append("run-1", [], expect={RUN_STATE_PAUSED, RUN_STATE_RUNNING})
    assert caught.value.reason == "RUN_STATE"
    assert caught.value.metadata["state"] == "CREATED"


async def test_other_columns_and_lonely_checkpoints_are_defects(store: Store) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    with pytest.raises(ValueError, match="last_sequence"):
        await store.append("run-1", [], changes={"last_sequence": 9})
    with pytest.raises(ValueError, match="CheckpointSaved"):
        await store.append("run-1", [log_event()], checkpoint=checkpoint(1))


async def test_the_newest_checkpoint_counts_the_final_one_too(store: Store) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    saved = [checkpoint(0), checkpoint(2), checkpoint(2, final=True, uri="file:///final")]
    for each in saved:
        await store.append("run-1", [log_event(), checkpoint_event(each)], checkpoint=each)
    latest = (await store.get_run("run-1")).latest_checkpoint
    assert latest == dataclasses.replace(saved[2], sequence=7)
    assert [each.sequence for each in await store.checkpoints("run-1")] == [3, 5, 7]


async def test_a_deleted_checkpoint_is_no_more_listed(store: Store) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    saved = [checkpoint(2), checkpoint(4), checkpoint(6)]
    for each in saved:
        await store.append("run-1", [checkpoint_event(each)], checkpoint=each)
    gone = [deleted_event(each) for each in saved[:2]]
    assert (await store.append("run-1", gone, deleted=[2, 3])).last_sequence == 6
    assert [each.step for each in await store.checkpoints("run-1")] == [6]
    run = await store.get_run("run-1")
    assert run.latest_checkpoint is not None and run.latest_checkpoint.step == 6


@pytest.mark.parametrize(
    ("events", "deleted"),
    [
        ([deleted_event(checkpoint(4))], [3]),  # the newest, which a resume needs
        ([deleted_event(checkpoint(9))], [9]),  # never there
        ([deleted_event(checkpoint(2))], []),
        ([], [2]),
        ([deleted_event(checkpoint(2))] * 2, [2, 2]),
    ],
)
async def test_a_checkpoint_is_deleted_once_with_its_event_and_never_the_newest(
    store: Store, events: list[RunEvent], deleted: list[int]
) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    for each in (checkpoint(2), checkpoint(4)):
        await store.append("run-1", [checkpoint_event(each)], checkpoint=each)
    with pytest.raises(ValueError):
        await store.append("run-1", events, deleted=deleted)
    assert [each.step for each in await store.checkpoints("run-1")] == [2, 4]
    assert (await store.get_run("run-1")).last_sequence == 3


async def test_the_newest_whole_checkpoint_takes_a_damaged_one_s_place(store: Store) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    saved = [checkpoint(2), checkpoint(4), checkpoint(6), checkpoint(8)]
    for each in saved:
        await store.append("run-1", [checkpoint_event(each)], checkpoint=each)
    await store.append("run-1", [deleted_event(saved[1])], deleted=[3])
    after = await store.append("run-1", [log_event(), damaged_event(saved[3])], damaged=5)
    assert after == await store.get_run("run-1")
    assert after.latest_checkpoint is not None and after.latest_checkpoint.step == 6
    # It is still there, to be looked at.
    assert [(each.step, each.damage_sequence) for each in await store.checkpoints("run-1")] == [
        *((2, None), (6, None), (8, 8))
    ]
    again = await store.append("run-1", [damaged_event(saved[2])], damaged=4)
    assert again.latest_checkpoint is not None and again.latest_checkpoint.step == 2
    for events, damaged in (
        ([damaged_event(saved[0])], 2),  # the only one left
        ([damaged_event(saved[2])], 4),  # not the newest
        ([damaged_event(saved[0])], None),
        ([], 2),
    ):
        with pytest.raises(ValueError):
            await store.append("run-1", events, damaged=damaged)
    assert (await store.get_run("run-1")) == again


async def test_a_log_never_goes_back_in_time(store: Store, clock: Clock) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    for seconds in (5, -3600, 0.000001, 3600, -1):
        clock.advance(seconds)
        await store.append("run-1", [log_event()])
    times = [each.time.ToNanoseconds() for each in await store.read_events("run-1", 0, limit=10)]
    assert times == sorted(times)
    assert times[2] == times[1], "while the clock is behind, time stands still"


async def test_create_is_idempotent_by_request_id(store: Store) -> None:
    key = RequestKey.of("CreateRun", UUID, b"payload")
    _, first = await store.create_run(record(), [state_event(RUN_STATE_CREATED)], request=key)
    await store.append("run-1", [log_event()], changes={"step": 3})
    # The answer to a repeat is the run as it is now; another id in the request would have made another run.
    again, second = await store.create_run(record("run-2"), [state_event(RUN_STATE_CREATED)], request=key)
    assert (first, second) == (True, False)
    assert (again.run_id, again.step) == ("run-1", 3)
    upper = RequestKey.of("CreateRun", UUID.upper(), b"payload")
    assert upper is not None
    seen = await store.request_seen(upper)
    assert seen is not None and seen.run_id == "run-1"
    other = RequestKey.of("CreateRun", UUID, b"other")
    with pytest.raises(InvalidArgumentError, match=UUID) as caught:
        await store.create_run(record("run-3"), [state_event(RUN_STATE_CREATED)], request=other)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert [each.run_id for each in await store.list_runs()] == ["run-1"]


async def test_concurrent_repeats_create_one_run(store: Store) -> None:
    key = RequestKey.of("CreateRun", UUID, b"payload")
    outcomes = await asyncio.gather(
        *(store.create_run(record(f"run-{n}"), [state_event(RUN_STATE_CREATED)], request=key) for n in range(20))
    )
    assert sum(new for _, new in outcomes) == 1
    assert len({run.run_id for run, _ in outcomes}) == 1
    assert len(await store.list_runs()) == 1


async def test_a_repeated_append_has_no_effect_until_the_key_expires(store: Store, clock: Clock) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    key = RequestKey.of("StartRun", UUID, b"run-1")

    async def start() -> int:
        return (
            await store.append(
                "run-1",
                [state_event(RUN_STATE_QUEUED)],
                changes={"state": RUN_STATE_QUEUED},
                expect=[RUN_STATE_CREATED],
                request=key,
            )
        ).last_sequence

    assert await start() == 2
    assert await start() == 2
    clock.advance(24 * 3600 - 1)
    assert await start() == 2
    clock.advance(2)
    with pytest.raises(FailedPreconditionError):
        await start()


async def test_a_refused_request_leaves_no_key(store: Store) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    key = RequestKey.of("ResumeRun", UUID, b"run-1")
    assert key is not None
    with pytest.raises(FailedPreconditionError):
        await store.append("run-1", [], expect=[RUN_STATE_PAUSED], request=key)
    assert await store.request_seen(key) is None


async def test_an_id_is_taken_once(store: Store) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    with pytest.raises(AlreadyExistsError, match="run-1") as caught:
        await store.create_run(record(seed=8), [state_event(RUN_STATE_CREATED)])
    assert caught.value.reason == "RUN_EXISTS"
    assert (await store.get_run("run-1")).seed == 7


async def test_runs_page_newest_first_without_gaps_or_repeats(store: Store) -> None:
    # Three runs share each create time: the id breaks the tie.
    for number in range(30):
        fields = {"create_time": START + timedelta(seconds=number // 3), "labels": {"half": str(number % 2)}}
        await store.create_run(record(f"run-{number:02}", **fields), [])
    found, before = [], None
    while page := await store.list_runs(limit=7, before=before):
        found.extend(each.run_id for each in page)
        before = (page[-1].create_time, page[-1].run_id)
    assert found == [f"run-{number:02}" for number in reversed(range(30))]


async def test_runs_are_filtered_by_state_recipe_and_labels(store: Store) -> None:
    odd_key = "a\"b'.$[0]"
    await store.create_run(record("a", labels={"team": "blue", odd_key: "1"}), [])
    await store.create_run(record("b", labels={"team": "red"}, recipe="dpo"), [])
    await store.create_run(record("c", state=RUN_STATE_QUEUED), [])

    async def ids(**filters: object) -> list[str]:
        return sorted(each.run_id for each in await store.list_runs(**filters))  # type: ignore[arg-type]

    assert await ids(states=[RUN_STATE_QUEUED]) == ["c"]
    assert await ids(states=[RUN_STATE_QUEUED, RUN_STATE_CREATED]) == ["a", "b", "c"]
    assert await ids(recipe="dpo") == ["b"]
    assert await ids(labels={"team": "blue"}) == ["a"]
    assert await ids(labels={odd_key: "1"}) == ["a"]
    assert await ids(labels={odd_key: "1", "team": "red"}) == []
    assert await ids(labels={"1": "1"}) == []


async def test_the_queue_keeps_the_order_in_which_runs_became_queued(store: Store) -> None:
    for run in "abc":
        await store.create_run(record(run), [])
    await store.create_run(record("d", state=RUN_STATE_QUEUED), [])
    for run in "cab":
        await store.append(run, [], changes={"state": RUN_STATE_QUEUED})
    assert [each.run_id for each in await store.runs_in_states([RUN_STATE_QUEUED])] == ["d", "c", "a", "b"]
    # One that runs keeps its place; one that is queued again goes to the end.
    await store.append("d", [], changes={"state": RUN_STATE_RUNNING})
    await store.append("c", [], changes={"state": RUN_STATE_PAUSED})
    await store.append("c", [], changes={"state": RUN_STATE_QUEUED})
    both = [RUN_STATE_QUEUED, RUN_STATE_RUNNING]
    assert [each.run_id for each in await store.runs_in_states(both)] == ["d", "a", "b", "c"]


async def test_a_long_log_reads_in_pages(store: Store) -> None:
    total = 100_000
    await store.create_run(record(), [log_event(f"{index}") for index in range(1, total + 1)])
    after, seen = 0, 0
    while events := await store.read_events("run-1", after, limit=500):
        assert [each.sequence for each in events] == list(range(after + 1, after + len(events) + 1))
        assert events[-1].log_recorded.message == str(events[-1].sequence)
        after, seen = events[-1].sequence, seen + len(events)
    assert seen == total


async def test_a_page_ends_when_its_bytes_are_reached(store: Store) -> None:
    await store.create_run(record(), [log_event("x" * 1000) for _ in range(10)])
    assert len(await store.read_events("run-1", 0, limit=10, max_bytes=3500)) == 4
    assert len(await store.read_events("run-1", 0, limit=10, max_bytes=1)) == 1, "never nothing"
    assert len(await store.read_events("run-1", 0, limit=3)) == 3


async def test_waiting_ends_with_the_event_the_time_or_the_interruption(store: Store) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    assert await store.wait_for_events("run-1", 0, 60), "what is there already is not waited for"
    assert not await store.wait_for_events("run-1", 1, 0.01)
    waits = [asyncio.create_task(store.wait_for_events("run-1", after, 60)) for after in (1, 1, 3)]
    await store.append("run-1", [log_event(), log_event()])
    assert await waits[0] and await waits[1]
    assert not waits[2].done()
    store.interrupt_waits()
    assert not await waits[2]
    with pytest.raises(NotFoundError):
        await Store.get_run(store, "missing")


async def test_an_append_whose_caller_is_gone_still_wakes_the_waiters(store: Store) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    wait = asyncio.create_task(store.wait_for_events("run-1", 1, 60))
    caller = asyncio.create_task(store.append("run-1", [log_event()]))
    await asyncio.sleep(0)  # lets it submit
    caller.cancel()
    assert await wait
    assert caller.cancelled()
    assert (await store.get_run("run-1")).last_sequence == 2
