"""PythonBridge: values travel whole, objects stay where they are, and every way to fail has a name of its own."""

from __future__ import annotations

import math
import uuid
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible.type.v1 import tensor_pb2
from crucible_adapters.fakes.python_bridge import FakePythonBridge, FakePythonBridgeOptions
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from crucible_kit.python_values import from_value, to_value
from crucible_kit.tensors import to_tensor
from tests.contract.conftest import Binding
from tests.contract.listing import assert_pages
from tests.contract.refusals import refused

VALUE, REFERENCE = pb.RESULT_MODE_VALUE, pb.RESULT_MODE_REFERENCE


@pytest.fixture
async def stub(binding: Binding, context: AdapterContext) -> Any:
    return await binding.stub(FakePythonBridge(FakePythonBridgeOptions(max_sessions=3), context))


class Session:
    """A session and short forms of its calls; arguments and results are Python objects."""

    def __init__(self, stub: Any, opened: pb.OpenSessionResponse) -> None:
        self.stub = stub
        self.opened = opened
        self.on = {"session_id": opened.session_id}

    async def call(self, name: str, *args: Any, mode: Any = VALUE, **kwargs: Any) -> Any:
        library, function = name.split(".")
        request = pb.CallFunctionRequest(
            **self.on, library=library, function=function, result_mode=mode, **arguments(args, kwargs)
        )
        return result((await self.stub.CallFunction(request)).result)

    async def method(self, ref: pb.ObjectRef, name: str, *args: Any, mode: Any = VALUE, **kwargs: Any) -> Any:
        request = pb.CallMethodRequest(**self.on, ref=ref, method=name, result_mode=mode, **arguments(args, kwargs))
        return result((await self.stub.CallMethod(request)).result)

    async def attribute(self, ref: pb.ObjectRef, name: str, mode: Any = VALUE) -> Any:
        request = pb.GetAttributeRequest(**self.on, ref=ref, attribute=name, result_mode=mode)
        return result((await self.stub.GetAttribute(request)).value)

    def stream(self, name: str, *args: Any, mode: Any = VALUE, **kwargs: Any) -> Any:
        library, function = name.split(".")
        request = pb.StreamFunctionRequest(
            **self.on, library=library, function=function, result_mode=mode, **arguments(args, kwargs)
        )
        return self.stub.StreamFunction(request)

    async def release(self, ref: pb.ObjectRef) -> None:
        await self.stub.ReleaseRef(pb.ReleaseRefRequest(**self.on, ref=ref))

    async def close(self) -> None:
        await self.stub.CloseSession(pb.CloseSessionRequest(**self.on))


def value(obj: Any) -> pb.Value:
    return obj if isinstance(obj, pb.Value) else to_value(obj)


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"args": [value(each) for each in args], "kwargs": {name: value(each) for name, each in kwargs.items()}}


def result(message: pb.Value) -> Any:
    return from_value(message, path="result", resolve=lambda ref: ref)


async def opened(stub: Any, **fields: Any) -> Session:
    request = pb.OpenSessionRequest(**{"request_id": str(uuid.uuid4()), **fields})
    return Session(stub, await stub.OpenSession(request))


@pytest.fixture
async def session(stub: Any) -> Session:
    return await opened(stub)


VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -(2**63),
    2**63 - 1,
    2**63,
    -(10**40),
    1.5,
    -0.0,
    math.inf,
    "",
    "żółć \U0001f600",
    b"",
    bytes(range(256)),
    [],
    [1, [2.5, "x", None], {"a": [True]}],
    {},
    {"": 1, "z": {"y": []}},
]


async def test_values_come_back_as_they_went(session: Session) -> None:
    for each in VALUES:
        back = await session.call("toy.echo", each)
        assert (back, type(back)) == (each, type(each))
    assert math.isnan(await session.call("toy.echo", math.nan))
    # A tuple travels as a list.
    assert await session.call("toy.echo", (1, 2)) == [1, 2]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "int64", "uint8", "bool"])
async def test_arrays_come_back_as_they_went(session: Session, dtype: str) -> None:
    for array in (np.arange(6).reshape(2, 3).astype(dtype), np.zeros((0, 4), dtype), np.array(1, dtype)):
        back = await session.call("toy.echo", array)
        assert back.dtype == array.dtype and back.shape == array.shape and np.array_equal(back, array)


async def test_functions_take_arguments_by_position_and_by_name(session: Session) -> None:
    assert await session.call("toy.add", 2, b=3) == 5
    assert await session.call("toy.add", "a", "b") == "ab"
    assert await session.call("toy.add", 41) == 42
    assert await session.call("math.factorial", 30) == math.factorial(30)
    scaled = await session.call("toy.scale", np.array([1.0, 2.0], np.float32), factor=2)
    assert scaled.dtype == np.float32 and scaled.tolist() == [2, 4]


async def test_objects_stay_and_are_named_by_references(session: Session) -> None:
    counter = await session.call("toy.counter", 5, label="cats", mode=REFERENCE)
    assert counter.class_name.endswith("Counter")
    assert [await session.method(counter, "increment") for _ in range(2)] == [6, 7]
    assert await session.method(counter, "increment", by=3) == 10
    assert (await session.attribute(counter, "value"), await session.attribute(counter, "label")) == (10, "cats")
    fork = await session.method(counter, "fork", mode=REFERENCE)
    assert fork.ref_id != counter.ref_id and await session.method(fork, "increment") == 11
    assert await session.attribute(counter, "value") == 10
    unique = await session.call("toy.unique", [1, 1, 2], mode=REFERENCE)
    assert unique.class_name == "set" and await session.call("toy.size", unique) == 2
    label = await session.attribute(counter, "label", mode=REFERENCE)
    assert await session.call("toy.add", label, "!") == "cats!"


async def test_a_released_reference_is_gone(session: Session) -> None:
    counter = await session.call("toy.counter", mode=REFERENCE)
    await session.release(counter)
    await session.release(counter)
    for call in (session.method(counter, "increment"), session.attribute(counter, "value")):
        with refused(NotFoundError, "REF_NOT_FOUND", says=counter.ref_id):
            await call
    with refused(NotFoundError, "REF_NOT_FOUND"):
        await session.call("toy.size", pb.ObjectRef(ref_id="never"))


async def test_references_do_not_cross_sessions(stub: Any, session: Session) -> None:
    counter = await session.call("toy.counter", mode=REFERENCE)
    other = await opened(stub)
    for call in (
        lambda: other.method(counter, "increment"),
        lambda: other.attribute(counter, "value"),
        lambda: other.call("toy.echo", [counter]),
        lambda: other.release(counter),
    ):
        with refused(PermissionDeniedError, "REF_OF_OTHER_SESSION", says=counter.ref_id):
            await call()
    assert await session.attribute(counter, "value") == 0
    await session.close()
    with refused(NotFoundError, "REF_NOT_FOUND"):
        await other.method(counter, "increment")


async def test_what_the_manifest_lacks_can_t_be_reached(session: Session) -> None:
    counter = await session.call("toy.counter", mode=REFERENCE)
    for call, reason in (
        (lambda: session.call("os.getcwd"), "LIBRARY_NOT_IN_MANIFEST"),
        (lambda: session.call("toy.__import__", "os"), "FUNCTION_NOT_IN_MANIFEST"),
        (lambda: session.call("math.pow", 1, 2), "FUNCTION_NOT_IN_MANIFEST"),
        (lambda: session.method(counter, "forget"), "METHOD_NOT_IN_MANIFEST"),
        (lambda: session.method(counter, "__init__"), "METHOD_NOT_IN_MANIFEST"),
        (lambda: session.attribute(counter, "__dict__"), "ATTRIBUTE_NOT_IN_MANIFEST"),
        (lambda: session.attribute(counter, "increment"), "ATTRIBUTE_NOT_IN_MANIFEST"),
    ):
        with refused(NotFoundError, reason):
            await call()


async def test_a_session_keeps_to_its_libraries(stub: Any) -> None:
    session = await opened(stub, libraries=["math"])
    assert await session.call("math.gcd", 12, 18) == 6
    with refused(NotFoundError, "LIBRARY_NOT_IN_MANIFEST", says="math"):
        await session.call("toy.add", 1)
    with refused(NotFoundError, "LIBRARY_NOT_IN_MANIFEST", says="'numpy'"):
        await opened(stub, libraries=["numpy"])
    with refused(FailedPreconditionError, "LIBRARY_NOT_INSTALLED", says="absent"):
        await opened(stub, libraries=["absent"])


BFLOAT16 = tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_BFLOAT16, shape=[1], dense=b"\0\0")
SHORT = tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_INT32, shape=[2], dense=b"\0\0\0\0")
BAD_ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "args[0]": ((pb.Value(),), {}),
    "args[1]": ((1, pb.Value(tensor=BFLOAT16)), {}),
    "args[0][1]": ((pb.Value(list=pb.ListValue(values=[value(1), pb.Value()])),), {}),
    "kwargs['b']": ((1,), {"b": pb.Value(tensor=SHORT)}),
    "kwargs['b']['k']": ((1,), {"b": pb.Value(dict=pb.DictValue(values={"k": pb.Value()}))}),
    "kwargs['c']": ((1,), {"c": 1}),
    "args": ((1, 2, 3), {}),
}


async def test_arguments_that_can_t_be_read_are_named(session: Session) -> None:
    for path, (args, kwargs) in BAD_ARGUMENTS.items():
        with pytest.raises(InvalidArgumentError) as caught:
            await session.call("toy.add", *args, **kwargs)
        assert (caught.value.reason, caught.value.metadata["argument"]) == ("ARGUMENT_UNPARSEABLE", path)
    deep = pb.Value(none="NULL_VALUE")
    for _ in range(25):
        deep = pb.Value(list=pb.ListValue(values=[deep]))
    with refused(InvalidArgumentError, "ARGUMENT_UNPARSEABLE", says="deeper than 24"):
        await session.call("toy.echo", deep)


async def test_an_exception_tells_class_message_and_traceback(session: Session) -> None:
    counter = await session.call("toy.counter", mode=REFERENCE)
    for call, kind, text in (
        (lambda: session.call("toy.fail", "no luck"), "ValueError", "no luck"),
        (lambda: session.call("math.sqrt", -1), "ValueError", "math domain error"),
        (lambda: session.call("toy.add", 1, "x"), "TypeError", ""),
        (lambda: session.method(counter, "increment", "x"), "TypeError", ""),
        (lambda: session.attribute(counter, "broken"), "RuntimeError", "nobody knows"),
    ):
        with pytest.raises(FailedPreconditionError) as caught:
            await call()
        error = caught.value
        assert (error.reason, error.metadata["exception_class"]) == ("PYTHON_EXCEPTION", kind)
        assert text in error.metadata["exception_message"]
        assert "Traceback" in error.message and error.message.endswith(f"{kind}: {error.metadata['exception_message']}")
    # The session goes on.
    assert await session.method(counter, "increment") == 1


async def test_a_long_traceback_keeps_its_end(session: Session) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        await session.call("toy.fail", "x" * 5000)
    error = caught.value
    assert error.reason == "PYTHON_EXCEPTION" and error.metadata["exception_class"] == "ValueError"
    assert len(error.message) < 2000 and error.message.endswith("x" * 100)


async def test_a_call_that_takes_too_long_loses_the_objects(stub: Any) -> None:
    session = await opened(stub, call_timeout=Duration(seconds=2))
    assert session.opened.call_timeout.seconds == 2
    counter = await session.call("toy.counter", mode=REFERENCE)
    await session.call("limits.sleep", 2)
    assert await session.attribute(counter, "value") == 0
    with refused(DeadlineExceededError, "CALL_TIMEOUT", says="2 s"):
        await session.call("limits.sleep", 3)
    with refused(NotFoundError, "REF_NOT_FOUND"):
        await session.attribute(counter, "value")
    assert await session.call("toy.add", 1) == 2


async def test_a_call_that_uses_too_much_memory_loses_the_objects(stub: Any) -> None:
    session = await opened(stub, memory_limit_bytes=1000)
    assert session.opened.memory_limit_bytes == 1000
    counter = await session.call("toy.counter", mode=REFERENCE)
    assert await session.call("limits.allocate", 1000) == 1000
    with pytest.raises(ResourceExhaustedError) as caught:
        await session.call("limits.allocate", 1001)
    assert caught.value.reason == "MEMORY_LIMIT" and caught.value.retry_delay is None
    with refused(NotFoundError, "REF_NOT_FOUND"):
        await session.method(counter, "increment")


async def test_limits_above_the_adapter_s_are_refused(stub: Any) -> None:
    with refused(InvalidArgumentError, "FIELD_INVALID", field="call_timeout", says="60 s"):
        await opened(stub, call_timeout=Duration(seconds=61))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="call_timeout"):
        await opened(stub, call_timeout=Duration())
    with refused(InvalidArgumentError, "FIELD_INVALID", field="memory_limit_bytes", says=str(2**30)):
        await opened(stub, memory_limit_bytes=2**40)


async def test_results_that_are_no_values_are_refused(session: Session) -> None:
    for name, args in (("toy.unique", [[1]]), ("toy.counter", []), ("toy.count_to", [3])):
        with refused(FailedPreconditionError, "RESULT_NOT_SERIALISABLE", says="reference"):
            await session.call(name, *args)
    with pytest.raises(ResourceExhaustedError) as caught:
        await session.call("toy.repeat", "x", 2_000_000)
    assert caught.value.reason == "RESULT_TOO_LARGE" and caught.value.retry_delay is None
    large = await session.call("toy.repeat", "x", 2_000_000, mode=REFERENCE)
    assert await session.call("toy.size", large) == 2_000_000


async def test_a_function_is_streamed_item_by_item(session: Session) -> None:
    assert [result(each.item) async for each in session.stream("toy.count_to", 5)] == [1, 2, 3, 4, 5]
    assert [each async for each in session.stream("toy.count_to", 0)] == []
    refs = [result(each.item) async for each in session.stream("toy.count_to", 2, mode=REFERENCE)]
    assert await session.call("toy.add", *refs) == 3
    with refused(FailedPreconditionError, "FUNCTION_NOT_STREAMED", says="toy.add"):
        await anext(session.stream("toy.add", 1))


async def test_an_error_ends_a_stream_after_the_items_before_it(session: Session) -> None:
    items = []
    with refused(FailedPreconditionError, "PYTHON_EXCEPTION", says="after 2"):
        async for each in session.stream("toy.count_to", 5, fail_after=2):
            items.append(result(each.item))  # noqa: PERF401 - a comprehension would lose them with the error
    assert items == [1, 2]


async def test_sessions_open_once_close_and_expire(stub: Any, session: Session) -> None:
    request_id = str(uuid.uuid4())
    other = await opened(stub, request_id=request_id)
    assert other.opened.lease.seconds == 600 and other.opened.session_id != session.opened.session_id
    assert (await opened(stub, request_id=request_id)).opened == other.opened
    with refused(InvalidArgumentError, "REQUEST_ID_REUSED"):
        await opened(stub, request_id=request_id, libraries=["toy"])
    await session.call("limits.advance", 601)
    with refused(FailedPreconditionError, "SESSION_EXPIRED", says=other.opened.session_id):
        await other.call("toy.add", 1)
    # The one that is used does not expire, and closing an expired one is OK.
    assert await session.call("toy.add", 1) == 2
    await other.close()
    await session.close()
    await session.close()
    with refused(NotFoundError, "SESSION_NOT_FOUND"):
        await session.call("toy.add", 1)
    reopened = await opened(stub, request_id=request_id)
    assert reopened.opened.session_id not in (other.opened.session_id, session.opened.session_id)


async def test_sessions_are_limited_until_one_is_closed(stub: Any) -> None:
    sessions = [await opened(stub) for _ in range(3)]
    with pytest.raises(ResourceExhaustedError) as caught:
        await opened(stub)
    assert caught.value.reason == "TOO_MANY_SESSIONS" and caught.value.retry_delay
    await sessions[0].close()
    await opened(stub)


async def test_every_call_names_an_open_session(stub: Any) -> None:
    nobody = Session(stub, pb.OpenSessionResponse(session_id="session-99"))
    ref = pb.ObjectRef(ref_id="r")
    calls: list[Any] = [
        nobody.call("toy.add", 1),
        nobody.method(ref, "increment"),
        nobody.attribute(ref, "value"),
        nobody.release(ref),
    ]
    for call in calls:
        with refused(NotFoundError, "SESSION_NOT_FOUND"):
            await call
    with pytest.raises(KitchenError) as caught:
        await anext(nobody.stream("toy.count_to", 1))
    assert caught.value.reason == "SESSION_NOT_FOUND"
    await nobody.close()


async def test_the_manifest_is_listed(stub: Any) -> None:
    found = {each.name: each for each in (await stub.ListLibraries(pb.ListLibrariesRequest())).libraries}
    assert list(found) == ["absent", "limits", "math", "toy"]
    assert not found["absent"].version and found["math"].version
    functions = {each.name: each for each in found["toy"].functions}
    assert [name for name, each in functions.items() if each.streams] == ["count_to"]
    assert "b" in functions["add"].signature and all(each.description for each in functions.values())
    (counter,) = found["toy"].classes
    assert (counter.name, list(counter.methods)) == ("Counter", ["fork", "increment"])
    assert list(counter.attributes) == ["broken", "label", "value"]
    await assert_pages(stub.ListLibraries, pb.ListLibrariesRequest(), "libraries")


def test_tensors_of_arguments_may_be_written_to() -> None:
    array = from_value(pb.Value(tensor=to_tensor(np.zeros(2))), path="x", resolve=lambda ref: None)
    array[0] = 1
    assert array.tolist() == [1, 0]
