"""Every error of the port by its reason, and what becomes of sessions, references and processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from pydantic import ValidationError

from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible_adapters.python_bridge.frames import encode
from crucible_adapters.python_bridge.options import MIN_MEMORY_BYTES, WorkersOptions
from crucible_adapters.python_bridge.workers import PythonWorkers
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
    to_status,
)
from tests.contract.refusals import refused
from tests.contract.test_python_bridge import BAD_ARGUMENTS, REFERENCE, VALUES, Session, arguments, opened, result
from tests.python_bridge.conftest import TOY, Gate, bridge, toy_options

UUID = "5f0c8a51-9f2f-4f66-8e58-0d5a7f5c2a00"


async def test_every_error_has_a_reason_of_its_own(tmp_path: Path) -> None:
    missing = write(tmp_path, "missing.yaml", "{name: missing, distribution: no-such-package, versions: '>=1'}")
    old = write(tmp_path, "old.yaml", "{name: old, distribution: numpy, versions: '>=99', install: buy a newer one}")
    broken = write(
        tmp_path,
        "broken.yaml",
        "{name: broken, distribution: numpy, versions: '>=0', functions: {f: {target: 'no_such_module:f'}}}",
    )
    async with bridge(tmp_path, manifests=(str(TOY), missing, old, broken), max_sessions=3, max_objects=2) as made:
        session, other = await opened(made.stub), await opened(made.stub, libraries=["toy"])
        counter = await session.call("toy.counter", mode=REFERENCE)
        await not_in_the_manifest(session, other, counter)
        for library, says in (
            ("missing", "no-such-package is not installed"),
            ("old", ">=99: buy"),
            ("broken", "no_such"),
        ):
            with refused(FailedPreconditionError, "LIBRARY_NOT_INSTALLED", says=says):
                await opened(made.stub, libraries=[library])
            with refused(FailedPreconditionError, "LIBRARY_NOT_INSTALLED", says=library):
                await session.call(f"{library}.f")
        await bad_arguments(session)
        await exceptions(session, counter)
        await references(session, other, counter)
        for call in (
            session.call("toy.unique", [1]),
            session.call("toy.wrong", 1),
            session.call("toy.counter"),
            session.call("toy.count_to", 1),
        ):
            with refused(FailedPreconditionError, "RESULT_NOT_SERIALISABLE", says="reference"):
                await call
        for call in (session.call("toy.repeat", "x", 2_000_000), session.call("toy.small", ["x" * 20])):
            with refused(ResourceExhaustedError, "RESULT_TOO_LARGE"):
                await call
        with refused(FailedPreconditionError, "FUNCTION_NOT_STREAMED"):
            await anext(session.stream("toy.add", 1))
        await opened(made.stub)
        with pytest.raises(ResourceExhaustedError) as caught:
            await opened(made.stub)
        assert caught.value.reason == "TOO_MANY_SESSIONS" and caught.value.retry_delay
        await other.close()
        with refused(NotFoundError, "SESSION_NOT_FOUND"):
            await other.call("toy.add", 1)


async def not_in_the_manifest(session: Session, other: Session, counter: pb.ObjectRef) -> None:
    for call, reason in (
        (session.call("os.getcwd"), "LIBRARY_NOT_IN_MANIFEST"),
        (opened(session.stub, libraries=["os"]), "LIBRARY_NOT_IN_MANIFEST"),
        (other.call("missing.f"), "LIBRARY_NOT_IN_MANIFEST"),
        (session.call("toy.__import__", "os"), "FUNCTION_NOT_IN_MANIFEST"),
        (session.call("toy.Counter"), "FUNCTION_NOT_IN_MANIFEST"),
        (session.method(counter, "forget"), "METHOD_NOT_IN_MANIFEST"),
        (session.method(counter, "__init__"), "METHOD_NOT_IN_MANIFEST"),
        (session.method(counter, "value"), "METHOD_NOT_IN_MANIFEST"),
        (session.attribute(counter, "__dict__"), "ATTRIBUTE_NOT_IN_MANIFEST"),
        (session.attribute(counter, "increment"), "ATTRIBUTE_NOT_IN_MANIFEST"),
    ):
        with refused(NotFoundError, reason):
            await call


async def bad_arguments(session: Session) -> None:
    for path, (args, kwargs) in BAD_ARGUMENTS.items():
        with pytest.raises(InvalidArgumentError) as caught:
            await session.call("toy.add", *args, **kwargs)
        assert (caught.value.reason, caught.value.metadata["argument"]) == ("ARGUMENT_UNPARSEABLE", path)
    for call, path in (
        (session.call("toy.add"), "args"),
        (session.call("toy.add", 1, a=1), "kwargs['a']"),
        (session.call("toy.allocate", True), "args[0]"),
        (session.call("toy.repeat", text="x", times=1.0), "kwargs['times']"),
        (session.call("toy.small", ["x", 1, 2.5]), "args[0][2]"),
        (session.call("toy.fail", "x" * 9001), "args[0]"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await call
        assert (caught.value.reason, caught.value.metadata["argument"]) == ("ARGUMENT_UNPARSEABLE", path)


async def exceptions(session: Session, counter: pb.ObjectRef) -> None:
    for call, kind, text in (
        (session.call("toy.fail", "no luck"), "ValueError", "no luck"),
        (session.call("toy.fail", "x" * 5000), "ValueError", "xxx"),
        (session.call("toy.add", 1, "x"), "TypeError", ""),
        (session.attribute(counter, "broken"), "RuntimeError", "nobody knows"),
    ):
        with pytest.raises(FailedPreconditionError) as caught:
            await call
        error = caught.value
        assert (error.reason, error.metadata["exception_class"]) == ("PYTHON_EXCEPTION", kind)
        assert text in error.metadata["exception_message"] and len(error.message) < 2000
        assert error.message.endswith(error.metadata["exception_message"][-100:].rstrip("…"))


async def references(session: Session, other: Session, counter: pb.ObjectRef) -> None:
    for call in (
        other.method(counter, "increment"),
        other.attribute(counter, "value"),
        other.call("toy.echo", [{"a": counter}]),
        other.release(counter),
    ):
        with refused(PermissionDeniedError, "REF_OF_OTHER_SESSION", says=counter.ref_id):
            await call
    second = await session.call("toy.echo", [counter], mode=REFERENCE)
    assert second.class_name == "list" and await session.call("toy.size", second) == 1
    with refused(ResourceExhaustedError, "TOO_MANY_OBJECTS", says="2"):
        await session.call("toy.counter", mode=REFERENCE)
    await session.release(second)
    await session.release(second)
    for call in (session.call("toy.size", second), session.call("toy.echo", pb.ObjectRef(ref_id="never"))):
        with refused(NotFoundError, "REF_NOT_FOUND"):
            await call
    assert await session.method(counter, "increment", by=3) == 3


async def test_values_travel_and_answers_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same request has the same bytes, in another process too."""
    monkeypatch.setenv("CARRIED_SECRET", "hunter2")
    answers = []
    for _ in range(2):
        async with bridge(tmp_path) as made:
            session = await opened(made.stub)
            for each in VALUES:
                back = await session.call("toy.echo", each)
                assert (back, type(back)) == (each, type(each))
            letters = [chr(97 + number) for number in range(26)]
            order = pb.CallFunctionRequest(
                session_id=session.opened.session_id, library="toy", function="order", **arguments((letters,), {})
            )
            answers.append((await made.stub.CallFunction(order)).SerializeToString(deterministic=True))
            seen = await session.call("toy.surroundings")
            # Nothing of the server's environment, and an empty folder.
            assert "CARRIED_SECRET" not in seen["environment"] and "hunter2" not in str(seen)
            assert seen["files"] == [] and seen["environment"]["HOME"] == seen["folder"] != os.getcwd()
    assert answers[0] == answers[1]


async def test_a_call_past_its_limit_loses_the_objects_of_its_session_alone(tmp_path: Path) -> None:
    async with bridge(tmp_path) as made:
        session, bystander = await opened(made.stub, memory_limit_bytes=64 * 2**20), await opened(made.stub)
        assert (session.opened.call_timeout.seconds, session.opened.memory_limit_bytes) == (60, 64 * 2**20)
        theirs = await bystander.call("toy.counter", 7, mode=REFERENCE)
        for call, kind, reason in (
            (lambda: session.call("toy.short"), DeadlineExceededError, "CALL_TIMEOUT"),
            (lambda: session.call("toy.allocate", 2**28), ResourceExhaustedError, "MEMORY_LIMIT"),
            (lambda: session.call("toy.leave"), FailedPreconditionError, "WORKER_DIED"),
        ):
            mine = await session.call("toy.counter", mode=REFERENCE)
            with refused(kind, reason, says="objects are lost"):
                await call()
            with refused(NotFoundError, "REF_NOT_FOUND"):
                await session.attribute(mine, "value")
        assert await bystander.call("toy.allocate", 2**28) == 2**28
        assert await bystander.attribute(theirs, "value") == 7
        for field, limits in (
            ("call_timeout", {"call_timeout": Duration(seconds=61)}),
            ("call_timeout", {"call_timeout": Duration()}),
            ("memory_limit_bytes", {"memory_limit_bytes": 2**40}),
            ("memory_limit_bytes", {"memory_limit_bytes": MIN_MEMORY_BYTES - 1}),
        ):
            with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
                await opened(made.stub, **limits)
        # With the least that is taken there is a worker.
        small = await opened(made.stub, memory_limit_bytes=MIN_MEMORY_BYTES)
        assert await small.call("toy.add", 1, 2) == 3
        with pytest.raises(ValidationError, match="memory_limit_bytes"):
            toy_options(memory_limit_bytes=MIN_MEMORY_BYTES - 1)


async def test_a_caller_that_leaves_takes_its_call_along(tmp_path: Path, gate: Gate) -> None:
    async with bridge(tmp_path) as made:
        session = await opened(made.stub)
        call = asyncio.ensure_future(session.call("toy.wait_for", gate.path))
        await gate.reached()
        worker = worker_of(made.adapter)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        # Nobody opens the gate: the next call could not run if the one before still did.
        assert await session.call("toy.add", 1) == 2
        assert worker.killed and worker is not worker_of(made.adapter)
        for turns in range(4):
            call = asyncio.ensure_future(session.call("toy.add", 1))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert await session.call("toy.add", 1) == 2
        opened_session = made.adapter._sessions.use(session.opened.session_id)
        assert (made.adapter._runner._waiting, opened_session.calls) == (0, 0)

        # Where it would lose objects, the call goes on to its end.
        gate = Gate(tmp_path, "second")
        counter = await session.call("toy.counter", mode=REFERENCE)
        call = asyncio.ensure_future(session.method(counter, "wait_and_increment", gate.path))
        await gate.reached()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        after = asyncio.ensure_future(session.attribute(counter, "value"))
        gate.open()
        assert await after == 1


async def test_calls_wait_for_a_worker_as_many_as_may(tmp_path: Path, gate: Gate) -> None:
    async with bridge(tmp_path, workers=1, max_queue=1) as made:
        first, second, third = [await opened(made.stub) for _ in range(3)]
        runs = asyncio.ensure_future(first.call("toy.wait_for", gate.path))
        await gate.reached()
        dropped = asyncio.ensure_future(second.call("toy.add", 1))
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError) as caught:
            await third.call("toy.add", 1)
        assert caught.value.reason == "QUEUE_FULL" and caught.value.retry_delay
        dropped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dropped
        waits = asyncio.ensure_future(third.call("toy.add", 2))
        gate.open()
        assert (await runs, await waits) == ("", 3)


async def test_a_closed_session_s_calls_end(tmp_path: Path, gate: Gate) -> None:
    async with bridge(tmp_path, workers=1) as made:
        session, other = await opened(made.stub), await opened(made.stub)
        await other.call("toy.add", 1)
        runs = asyncio.ensure_future(session.call("toy.wait_for", gate.path))
        await gate.reached()
        waits = asyncio.ensure_future(session.call("toy.add", 1))
        waits_for_a_worker = asyncio.ensure_future(other.call("toy.add", 1))
        await asyncio.sleep(0)
        await other.close()
        await session.close()
        for call in (runs, waits, waits_for_a_worker):
            with refused(NotFoundError, "SESSION_NOT_FOUND"):
                await call
        assert await (await opened(made.stub)).call("toy.add", 1) == 2
        assert len(made.adapter._template._workers) == 1


FORGED = [
    b"\xff" * 100,
    b"\0\0\0\x02\0\0\0\0[]",
    encode({"is": "kept", "class_name": "x", "kinds": ["os\0system"]}),
    encode({"is": "value"}, b"\xff"),
    encode(
        {"is": "refused"},
        to_status(UnavailableError("try again", reason="ARGUMENT_UNPARSEABLE_NOT")).SerializeToString(),
    ),
    encode({}) + encode({}),
]


async def test_streams_end_and_answers_that_no_worker_gives_end_it(tmp_path: Path) -> None:
    async with bridge(tmp_path) as made:
        session = await opened(made.stub)
        items = []
        with refused(FailedPreconditionError, "PYTHON_EXCEPTION", says="after 2"):
            async for each in session.stream("toy.count_to", 5, fail_after=2):
                # A call of the session in between does not wait for the stream.
                items.append(await session.call("toy.add", result(each.item)))  # noqa: PERF401 - it would lose them
        assert items == [2, 3]
        stream = session.stream("toy.count_to", 10**9)
        assert result((await anext(stream)).item) == 1
        with refused(FailedPreconditionError, "WORKER_DIED"):
            await session.call("toy.leave")
        with refused(NotFoundError, "REF_NOT_FOUND", says="lost"):
            await anext(stream)
        for answer in FORGED:
            with refused(FailedPreconditionError, "WORKER_DIED"):
                await session.call("toy.forge", answer, mode=REFERENCE)
            assert await session.call("toy.add", 1) == 2
        stream = session.stream("toy.count_to", 10**9)
        await anext(stream)
        await session.close()
        with refused(NotFoundError, "SESSION_NOT_FOUND"):
            await anext(stream)


async def test_sessions_expire_by_their_lease(tmp_path: Path) -> None:
    async with bridge(tmp_path, lease_seconds=100.0) as made:
        used, unused = await opened(made.stub, request_id=UUID), await opened(made.stub)
        assert used.opened.lease.seconds == 100
        assert (await opened(made.stub, request_id=UUID)).opened == used.opened
        with refused(InvalidArgumentError, "REQUEST_ID_REUSED"):
            await opened(made.stub, request_id=UUID, libraries=["toy"])
        await unused.call("toy.add", 1)
        worker = worker_of(made.adapter)
        made.clock.now += 60
        assert await used.call("toy.add", 1) == 2
        made.clock.now += 60
        with refused(FailedPreconditionError, "SESSION_EXPIRED", says=unused.opened.session_id):
            await unused.call("toy.add", 1)
        assert worker.killed and await used.call("toy.add", 1) == 2
        await unused.close()
        await used.close()
        assert (await opened(made.stub, request_id=UUID)).opened.session_id != used.opened.session_id


async def test_processes_that_are_killed_are_replaced_and_none_is_left(tmp_path: Path, gate: Gate) -> None:
    async with bridge(tmp_path) as made:
        session = await opened(made.stub)
        counter = await session.call("toy.counter", mode=REFERENCE)
        worker = worker_of(made.adapter)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(KitchenError) as caught:
            await session.method(counter, "increment")
        # It is seen either in the call or before it.
        assert caught.value.reason in ("WORKER_DIED", "REF_NOT_FOUND")
        assert await session.call("toy.add", 1) == 2
        template = made.adapter._template._process
        assert template is not None
        template.kill()
        template.wait()
        # A session that is new needs a process that is new, and gets one of a template that is new.
        assert await (await opened(made.stub)).call("toy.add", 1) == 2
        replaced = made.adapter._template._process
        assert replaced is not None and replaced.pid != template.pid
        # The one before has lost its process, and with it nothing.
        assert await session.call("toy.add", 1) == 2
        folder, control = made.adapter._template._folder, made.adapter._template._control
        runs = asyncio.ensure_future(session.call("toy.wait_for", gate.path))
        await gate.reached()
        # What the end of the server looks like to them.
        assert control is not None
        control.shutdown(socket.SHUT_RDWR)
        with refused(FailedPreconditionError, "WORKER_DIED", says="SIGKILL"):
            await runs
        await asyncio.to_thread(replaced.wait)
    assert replaced.poll() == -signal.SIGKILL and folder is not None and not folder.path.exists()
    with pytest.raises(KitchenError) as caught:
        await opened(made.stub)
    assert caught.value.reason == "ADAPTER_CLOSED"


async def test_a_template_that_does_not_answer_is_replaced(tmp_path: Path) -> None:
    async with bridge(tmp_path) as made:
        assert await (await opened(made.stub)).call("toy.add", 1) == 2
        template = made.adapter._template
        stopped = template._process
        assert stopped is not None
        os.kill(stopped.pid, signal.SIGSTOP)
        with refused(UnavailableError, "WORKERS_UNAVAILABLE", says="has not answered for 0.05 s"):
            await template._exchange({"reap": 0}, seconds=0.05)
        assert stopped.poll() == -signal.SIGKILL
        assert await (await opened(made.stub)).call("toy.add", 1) == 2


BAD_MANIFESTS = {
    "an unknown key": ("{name: a, distribution: numpy, versions: '>=0', evil: 1}", "evil"),
    "no versions": ("{name: a, distribution: numpy}", "versions"),
    "versions that are none": ("{name: a, distribution: numpy, versions: new}", "range of versions"),
    "a private target": ("{name: a, distribution: numpy, versions: '', functions: {f: {target: 'os:__x'}}}", "target"),
    "a private name": ("{name: a, distribution: numpy, versions: '', functions: {_f: {target: 'os:f'}}}", "_f"),
    "an unknown type": (
        "{name: a, distribution: numpy, versions: '', functions: {f: {target: 'os:f', returns: 'str'}}}",
        "no type",
    ),
    "no YAML": ("{", "can't be read"),
    "no manifest": ("- 1", "the file"),
    "a second one of a name": ("{name: toy, distribution: numpy, versions: ''}", "second manifest"),
}


@pytest.mark.parametrize("what", BAD_MANIFESTS)
def test_manifests_that_are_wrong_are_refused(tmp_path: Path, what: str) -> None:
    content, says = BAD_MANIFESTS[what]
    path = write(tmp_path, "bad.yaml", content)
    with refused(InvalidArgumentError, "MANIFEST_INVALID", field="options.manifests", says=says):
        PythonWorkers(toy_options(manifests=(str(TOY), path)), AdapterContext(data_dir=tmp_path))


@pytest.mark.parametrize("path", ["toy.yaml", "/no/such/file.yaml"])
def test_manifests_that_are_not_there_are_refused(tmp_path: Path, path: str) -> None:
    with refused(InvalidArgumentError, "MANIFEST_INVALID", says=path):
        PythonWorkers(WorkersOptions(libraries=(), manifests=(path,)), AdapterContext(data_dir=tmp_path))


def write(folder: Path, name: str, content: str) -> str:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return str(path)


def worker_of(adapter: PythonWorkers) -> Any:
    """The worker that was started last."""
    return max(adapter._template._workers, key=lambda each: each.pid)
