"""Turns on the compute thread. A gate holds the thread while jobs are queued, so every order is exact."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future

import pytest

from crucible_adapters.torch_engine.compute import Compute, ComputeQueue


@pytest.fixture
def compute() -> Iterator[Compute]:
    compute = Compute()
    yield compute
    compute.close()


class Log:
    """What ran, in order; jobs write their name when they run."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def job(self, name: str) -> Callable[[], str]:
        def run() -> str:
            self.ran.append(name)
            return name

        return run

    def submit(self, queue: ComputeQueue, *names: str) -> list[Future[str]]:
        return [queue.submit(self.job(name)) for name in names]


def hold(queue: ComputeQueue | Compute) -> Callable[[], None]:
    """Occupy the thread from now on until the returned function is called."""
    running, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        running.set()
        go_on.wait()

    queue.submit(wait)
    running.wait()
    return go_on.set


@pytest.fixture
def log() -> Log:
    return Log()


def finish(*queues: list[Future[str]]) -> None:
    for futures in queues:
        for future in futures:
            future.result(10)


def test_queues_take_turns_and_keep_their_own_order(compute: Compute, log: Log) -> None:
    a, b, c = (compute.queue() for _ in range(3))
    release = hold(compute)
    submitted = [
        log.submit(a, "a1", "a2", "a3", "a4"),
        log.submit(b, "b1", "b2"),
        log.submit(c, "c1"),
        log.submit(a, "a5"),
    ]
    release()
    finish(*submitted)
    assert log.ran == ["a1", "b1", "c1", "a2", "b2", "a3", "a4", "a5"]
    assert [future.result() for future in submitted[0]] == ["a1", "a2", "a3", "a4"]


def test_64_queued_jobs_delay_another_session_by_one(compute: Compute, log: Log) -> None:
    busy, late = compute.queue(), compute.queue()
    running, go_on = threading.Event(), threading.Event()

    def first() -> None:
        running.set()
        go_on.wait()
        log.ran.append("busy 0")

    opening = busy.submit(first)
    running.wait()
    backlog = log.submit(busy, *(f"busy {n}" for n in range(1, 64)))
    one = log.submit(late, "late")
    go_on.set()
    opening.result(10)
    finish(backlog, one)
    assert log.ran.index("late") == 1


def test_a_job_submitted_while_its_queue_runs_waits_behind_those_that_came_before_the_end(
    compute: Compute, log: Log
) -> None:
    a, b = compute.queue(), compute.queue()
    release = hold(a)
    second, other = log.submit(a, "a2"), log.submit(b, "b1")
    release()
    finish(second, other)
    assert log.ran == ["b1", "a2"]


def test_nobody_starves_among_eight_that_always_have_work(compute: Compute, log: Log) -> None:
    """Every job queues its successor the moment it runs: each round still serves each queue once."""
    rounds = 5
    queues = [compute.queue() for _ in range(8)]
    done = [threading.Event() for _ in queues]

    def again(index: int, left: int) -> None:
        log.ran.append(str(index))
        if left:
            queues[index].submit(lambda: again(index, left - 1))
        else:
            done[index].set()

    release = hold(compute)
    for index, queue in enumerate(queues):
        queue.submit(lambda index=index: again(index, rounds - 1))
    release()
    for event in done:
        assert event.wait(10)
    assert log.ran == [str(index) for _ in range(rounds) for index in range(8)]


def test_a_cancelled_job_takes_no_turn_but_its_place(compute: Compute, log: Log) -> None:
    a, b = compute.queue(), compute.queue()
    release = hold(compute)
    cancelled = [
        a.submit(log.job("never"), on_cancelled=lambda name=name: log.ran.append(name), cost=5) for name in ("x1", "x2")
    ]
    rest, other = log.submit(a, "a3", "a4"), log.submit(b, "b1")
    assert all(future.cancel() for future in cancelled)
    assert (a.unfinished, a.cost) == (4, 10)
    release()
    finish(rest, other)
    assert log.ran == ["x1", "x2", "a3", "b1", "a4"]
    assert (a.unfinished, a.cost) == (0, 0)
    with pytest.raises(CancelledError):
        cancelled[0].result(10)


def test_what_fails_in_place_of_a_cancelled_job_stops_nothing(compute: Compute, log: Log) -> None:
    queue = compute.queue()
    release = hold(compute)

    def fail() -> None:
        raise ValueError("no")

    queue.submit(log.job("never"), on_cancelled=fail).cancel()
    rest = log.submit(queue, "next")
    release()
    finish(rest)
    assert log.ran == ["next"]


def test_only_cancelled_jobs_leave_the_turn_to_the_next(compute: Compute, log: Log) -> None:
    a, b = compute.queue(), compute.queue()
    release = hold(compute)
    for future in log.submit(a, "x1", "x2"):
        future.cancel()
    other = log.submit(b, "b1")
    release()
    finish(other)
    finish(log.submit(a, "a1"))
    assert log.ran == ["b1", "a1"]


def test_closing_a_queue_drops_what_it_holds_and_leaves_the_others(compute: Compute, log: Log) -> None:
    a, b = compute.queue(), compute.queue()
    running, go_on = threading.Event(), threading.Event()

    def first() -> str:
        running.set()
        go_on.wait()
        return "finished"

    begun = a.submit(first, cost=3)
    running.wait()
    dropped = [a.submit(log.job("a"), on_cancelled=lambda: log.ran.append("dropped"), cost=2) for _ in range(3)]
    other = log.submit(b, "b1", "b2")
    a.close()
    assert all(future.cancelled() for future in dropped)
    assert (a.unfinished, a.cost) == (1, 3)
    go_on.set()
    finish(other)
    assert begun.result(10) == "finished"
    assert log.ran == ["b1", "b2"]
    assert a.unfinished == 0
    with pytest.raises(RuntimeError, match="closed"):
        a.submit(log.job("late"))


def test_a_failed_job_tells_its_error_and_keeps_nothing_alive(compute: Compute) -> None:
    class Activations:
        pass

    queue = compute.queue()
    held: list[weakref.ref[Activations]] = []

    def fail() -> None:
        activations = Activations()
        held.append(weakref.ref(activations))
        raise ValueError("no")

    gc.disable()
    try:
        future = queue.submit(fail)
        with pytest.raises(ValueError, match="no"):
            future.result(10)
        queue.submit(int).result(10)
        del future
        assert held[0]() is None
    finally:
        gc.enable()


def test_room_is_free_for_whoever_has_the_result(compute: Compute) -> None:
    queue = compute.queue()
    seen = []
    future = queue.submit(int, cost=7)
    future.add_done_callback(lambda _: seen.append((queue.unfinished, queue.cost)))
    future.result(10)
    queue.submit(int).result(10)
    assert seen == [(0, 0)]


def test_close_lets_the_running_job_end_and_cancels_the_rest(log: Log) -> None:
    compute = Compute()
    a, b = compute.queue(), compute.queue()
    release = hold(a)
    waiting = [*log.submit(a, "a2"), *log.submit(b, "b1")]
    closer = threading.Thread(target=compute.close)
    closer.start()
    while not compute.closed:
        pass
    release()
    closer.join(10)
    assert not closer.is_alive()
    assert all(future.cancelled() for future in waiting)
    assert log.ran == []
    with pytest.raises(RuntimeError, match="closed"):
        b.submit(log.job("late"))
