"""Python bridges: sessions, calls of functions, and values of every kind."""

from __future__ import annotations

import asyncio
import math
import struct
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible.type.v1 import tensor_pb2
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import CheckFailed, CheckSkipped, check, check_equal, check_refused, one_by_one
from crucible_kit.conformance.paging import Page, all_keys, check_names
from crucible_kit.conformance.requirement import Samples, Stage, Suite
from crucible_kit.conformance.settings import SuiteSettings
from crucible_kit.errors import KitchenError

_FUNCTION = r"[^.]+\..+"
_SIZES = (0, 1, 256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1)


class PythonBridgeSettings(SuiteSettings):
    """Settings of the suite of Python bridges. A function is LIBRARY.NAME; a check without its function is skipped."""

    echo: str = Field(default="toy.echo", pattern=_FUNCTION, description="Function that returns its one argument.")
    fails: str = Field(default="toy.fail", pattern=_FUNCTION, description="Function of one text that raises.")
    counts: str = Field(
        default="toy.count_to", pattern=_FUNCTION, description="Function of n that yields 1 to n, for StreamFunction."
    )
    makes: str = Field(default="toy.counter", pattern=_FUNCTION, description="Function of an int that makes an object.")
    method: str = Field(
        default="increment", description="Method of that object without arguments: the int goes up by 1."
    )
    attribute: str = Field(default="value", description="Attribute of that object that holds the int.")
    unserialisable: str = Field(
        default="toy.unique", pattern=_FUNCTION, description="Function of a list whose result is no value, such as set."
    )


SUITE = Suite(port="python_bridge", settings=PythonBridgeSettings)
Bridges = Context[PythonBridgeSettings]


def session_request(**fields: Any) -> pb.OpenSessionRequest:
    """A request for a session."""
    return pb.OpenSessionRequest(**{"request_id": str(uuid.uuid4()), **fields})


async def open_with(context: Bridges, request: pb.OpenSessionRequest) -> pb.OpenSessionResponse:
    """A session that is closed after the check."""
    response = await context.stub.OpenSession(request)
    close = pb.CloseSessionRequest(session_id=response.session_id)
    context.defer(lambda: context.stub.CloseSession(close))
    return response


async def open_session(context: Bridges, **fields: Any) -> str:
    """A new session's id."""
    return (await open_with(context, session_request(**fields))).session_id


async def known(context: Bridges, name: str) -> tuple[str, str]:
    """Library and name of a function of the manifest. Raises CheckSkipped when the manifest does not have it."""
    library, _, function = name.partition(".")
    listed = {each.name: each for each in (await context.stub.ListLibraries(pb.ListLibrariesRequest())).libraries}
    if library not in listed or all(each.name != function for each in listed[library].functions):
        raise CheckSkipped(f"the manifest has no {name}: name a function of its own with --set")
    return library, function


async def call_request(context: Bridges, session_id: str, name: str, *args: pb.Value, **fields: Any) -> Any:
    """A request for a call."""
    library, function = await known(context, name)
    return pb.CallFunctionRequest(session_id=session_id, library=library, function=function, args=args, **fields)


async def call(context: Bridges, session_id: str, name: str, *args: pb.Value, **fields: Any) -> pb.Value:
    """What a function returns."""
    return (await context.stub.CallFunction(await call_request(context, session_id, name, *args, **fields))).result


async def echo(context: Bridges, session_id: str, value: pb.Value) -> pb.Value:
    """A value there and back."""
    return await call(context, session_id, context.settings.echo, value)


async def make(context: Bridges, session_id: str, start: int = 5) -> pb.ObjectRef:
    """An object that stays in its session."""
    result = await call(
        context,
        session_id,
        context.settings.makes,
        pb.Value(integer=start),
        result_mode=pb.RESULT_MODE_REFERENCE,
    )
    check_equal(result.WhichOneof("kind"), "ref", "the kind of a result that was asked for as a reference")
    check(bool(result.ref.ref_id) and bool(result.ref.class_name), "an id and a class name", result.ref)
    return result.ref


async def advance(context: Bridges, session_id: str, ref: pb.ObjectRef) -> int:
    """Calls the object's method."""
    request = pb.CallMethodRequest(session_id=session_id, ref=ref, method=context.settings.method)
    return (await context.stub.CallMethod(request)).result.integer


async def attribute(context: Bridges, session_id: str, ref: pb.ObjectRef) -> int:
    """Reads the object's attribute."""
    request = pb.GetAttributeRequest(session_id=session_id, ref=ref, attribute=context.settings.attribute)
    return (await context.stub.GetAttribute(request)).value.integer


@SUITE.samples
async def _samples(context: Bridges) -> Samples:
    session_id = await open_session(context)
    samples: dict[str, Any] = {
        "ListLibraries": pb.ListLibrariesRequest(),
        "OpenSession": session_request(),
        "CloseSession": pb.CloseSessionRequest(session_id=f"no-{session_id}"),
        "ReleaseRef": pb.ReleaseRefRequest(session_id=session_id, ref=pb.ObjectRef(ref_id="no-ref-is-called-so")),
    }
    try:
        samples["CallFunction"] = await call_request(context, session_id, context.settings.echo, pb.Value(integer=1))
        ref = await make(context, session_id)
    except CheckSkipped:
        return samples
    samples["CallMethod"] = pb.CallMethodRequest(session_id=session_id, ref=ref, method=context.settings.method)
    samples["GetAttribute"] = pb.GetAttributeRequest(
        session_id=session_id, ref=ref, attribute=context.settings.attribute
    )
    return samples


@SUITE.pings
async def _ping(context: Bridges) -> None:
    await context.stub.CloseSession(pb.CloseSessionRequest(session_id="no-session-is-called-so"))


@SUITE.undoes("OpenSession")
async def _close_opened(context: Bridges, messages: Sequence[Any], answer: Any) -> None:
    # The same request again: the first may have been answered to nobody.
    await open_with(context, messages[0])


@SUITE.requirement(
    "PYB-LIST-01",
    "ListLibraries MUST list the manifest by name, in pages of any size; functions, classes, methods and attributes "
    "too.",
    quote="ListLibraries lists the manifest, sorted by name.",
)
async def _lists(context: Bridges) -> None:
    async def page(size: int, token: str) -> Page:
        response = await context.stub.ListLibraries(pb.ListLibrariesRequest(page_size=size, page_token=token))
        return Page([library.name for library in response.libraries], response.next_page_token)

    check(len(await check_names(page, "the libraries")) > 0, "at least one library", "none")
    for library in (await context.stub.ListLibraries(pb.ListLibrariesRequest())).libraries:
        lists: dict[str, list[str]] = {
            f"the functions of {library.name}": [each.name for each in library.functions],
            f"the classes of {library.name}": [each.name for each in library.classes],
        }
        for kind in library.classes:
            lists[f"the methods of {library.name}.{kind.name}"] = list(kind.methods)
            lists[f"the attributes of {library.name}.{kind.name}"] = list(kind.attributes)
        for what, names in lists.items():
            check_equal(names, sorted(set(names)), f"{what}, sorted and each once")
    check(len(await all_keys(page, 0)) > 0, "libraries", "none")


@SUITE.requirement(
    "PYB-SESSION-01",
    "OpenSession MUST be idempotent by request_id, and tell lease and limits; other content is INVALID_ARGUMENT "
    "REQUEST_ID_REUSED.",
    quote="OpenSession opens a session. Idempotent by request_id; other content is INVALID_ARGUMENT REQUEST_ID_REUSED.",
)
async def _opens(context: Bridges) -> None:
    request = session_request()
    both = await asyncio.gather(open_with(context, request), open_with(context, request))
    check_equal(both[1], both[0], "the answer of a repeated request_id")
    check(bool(both[0].session_id), "a session's id", "an empty one")
    check(both[0].lease.ToNanoseconds() > 0, "a lease", both[0].lease)
    check(both[0].call_timeout.ToNanoseconds() > 0, "a limit of calls", both[0].call_timeout)
    request.memory_limit_bytes = 1024 * 1024
    refused = context.stub.OpenSession(request)
    await check_refused(refused, "INVALID_ARGUMENT", "REQUEST_ID_REUSED", what="a request_id with other limits")
    refused = open_session(context, libraries=["no_library_is_called_so"])
    await check_refused(refused, "NOT_FOUND", "LIBRARY_NOT_IN_MANIFEST", what="a session of an unknown library")


@SUITE.requirement(
    "PYB-SESSION-02",
    "Calls of a session that is closed or never was MUST be NOT_FOUND SESSION_NOT_FOUND; closing it is OK.",
    quote="NOT_FOUND SESSION_NOT_FOUND: never opened, or closed.",
)
async def _closes(context: Bridges) -> None:
    session_id = await open_session(context)
    for each in (session_id, session_id, "no-session-is-called-so"):
        await context.stub.CloseSession(pb.CloseSessionRequest(session_id=each))
    for which, each in (("a closed session", session_id), ("an unknown session", "no-session-is-called-so")):
        refused = echo(context, each, pb.Value(integer=1))
        await check_refused(refused, "NOT_FOUND", "SESSION_NOT_FOUND", what=f"CallFunction of {which}")
        request = pb.ReleaseRefRequest(session_id=each, ref=pb.ObjectRef(ref_id="x"))
        refused = context.stub.ReleaseRef(request)
        await check_refused(refused, "NOT_FOUND", "SESSION_NOT_FOUND", what=f"ReleaseRef of {which}")


@SUITE.requirement(
    "PYB-CALL-01",
    "What the manifest does not have MUST be NOT_FOUND, each with its own reason.",
    quote="NOT_FOUND LIBRARY_NOT_IN_MANIFEST, FUNCTION_NOT_IN_MANIFEST, METHOD_NOT_IN_MANIFEST, "
    "ATTRIBUTE_NOT_IN_MANIFEST.",
)
async def _not_in_the_manifest(context: Bridges) -> None:
    session_id = await open_session(context)
    library, _ = await known(context, context.settings.echo)
    for name, function, reason in (
        ("os", "system", "LIBRARY_NOT_IN_MANIFEST"),
        ("builtins", "eval", "LIBRARY_NOT_IN_MANIFEST"),
        (library, "no_function", "FUNCTION_NOT_IN_MANIFEST"),
        (library, "__import__", "FUNCTION_NOT_IN_MANIFEST"),
    ):
        request = pb.CallFunctionRequest(session_id=session_id, library=name, function=function)
        await check_refused(context.stub.CallFunction(request), "NOT_FOUND", reason, what=f"{name}.{function}")
    ref = await make(context, session_id)
    for method in ("no_method", "__class__", "__init__"):
        request = pb.CallMethodRequest(session_id=session_id, ref=ref, method=method)
        refused = context.stub.CallMethod(request)
        await check_refused(refused, "NOT_FOUND", "METHOD_NOT_IN_MANIFEST", what=f"the method {method}")
        request = pb.GetAttributeRequest(session_id=session_id, ref=ref, attribute=method)
        refused = context.stub.GetAttribute(request)
        await check_refused(refused, "NOT_FOUND", "ATTRIBUTE_NOT_IN_MANIFEST", what=f"the attribute {method}")


@SUITE.requirement(
    "PYB-CALL-02",
    "Arguments that the function does not take, or that are no value, MUST be INVALID_ARGUMENT ARGUMENT_UNPARSEABLE.",
    quote="INVALID_ARGUMENT ARGUMENT_UNPARSEABLE: an argument that can't be turned into a Python value",
)
async def _bad_arguments(context: Bridges) -> None:
    session_id = await open_session(context)
    one = pb.Value(integer=1)
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_FLOAT32, shape=[2], dense=b"\0")
    cases: dict[str, Any] = {
        "a value of nothing": call(context, session_id, context.settings.echo, pb.Value()),
        "an argument too many": call(context, session_id, context.settings.echo, one, one, one, one, one, one),
        "an unknown name": call(context, session_id, context.settings.echo, one, kwargs={"no_name": one}),
        "a tensor with too few bytes": call(context, session_id, context.settings.echo, pb.Value(tensor=tensor)),
    }
    for what, refused in one_by_one(cases):
        await check_refused(refused, "INVALID_ARGUMENT", "ARGUMENT_UNPARSEABLE", what=what)


@SUITE.requirement(
    "PYB-CALL-03",
    "A function that raises MUST be FAILED_PRECONDITION PYTHON_EXCEPTION with the exception's class and message.",
    quote="FAILED_PRECONDITION PYTHON_EXCEPTION: the call raised",
)
async def _raises(context: Bridges) -> None:
    session_id = await open_session(context)
    refused = call(context, session_id, context.settings.fails, pb.Value(text="told to fail"))
    error = await check_refused(refused, "FAILED_PRECONDITION", "PYTHON_EXCEPTION", what="a function that raises")
    if context.channel.refusals[-1].details is not None:
        check(bool(error.metadata.get("exception_class")), "exception_class in the metadata", error.metadata)
        check("exception_message" in error.metadata, "exception_message in the metadata", error.metadata)
    check_equal((await echo(context, session_id, pb.Value(integer=7))).integer, 7, "the next call of the session")


@SUITE.requirement(
    "PYB-CALL-04",
    "Calls of one session MUST run one after the other, in the order they arrive.",
    quote="Calls of one session run one after the other, in the order they arrive.",
)
async def _one_after_the_other(context: Bridges) -> None:
    session_id = await open_session(context)
    ref = await make(context, session_id, 0)
    seen = await asyncio.gather(*(advance(context, session_id, ref) for _ in range(32)))
    check_equal(sorted(seen), list(range(1, 33)), "the values of an object that 32 calls at a time count on")


@SUITE.requirement(
    "PYB-RESULT-01",
    "A result that is no value MUST be FAILED_PRECONDITION RESULT_NOT_SERIALISABLE, or a reference when asked for.",
    quote="FAILED_PRECONDITION RESULT_NOT_SERIALISABLE: a result that is no Value: ask for a reference.",
)
async def _no_values(context: Bridges) -> None:
    session_id = await open_session(context)
    numbers = pb.Value(list=pb.ListValue(values=[pb.Value(integer=1), pb.Value(integer=2)]))
    refused = call(context, session_id, context.settings.unserialisable, numbers)
    await check_refused(refused, "FAILED_PRECONDITION", "RESULT_NOT_SERIALISABLE", what="a result that is no value")
    result = await call(
        context, session_id, context.settings.unserialisable, numbers, result_mode=pb.RESULT_MODE_REFERENCE
    )
    check_equal(result.WhichOneof("kind"), "ref", "the kind of the same result as a reference")


def plain_values() -> Mapping[str, pb.Value]:
    """A value of every kind but tensors and references."""
    nested = pb.Value(integer=0)
    for _ in range(8):
        nested = pb.Value(list=pb.ListValue(values=[nested, pb.Value(dict=pb.DictValue(values={"x": nested}))][:1]))
    mixed = pb.DictValue(
        values={"a": pb.Value(text="b"), "": pb.Value(none="NULL_VALUE"), "\u00e9": pb.Value(real=0.5)}
    )
    return {
        "None": pb.Value(none="NULL_VALUE"),
        "True": pb.Value(boolean=True),
        "False": pb.Value(boolean=False),
        "0": pb.Value(integer=0),
        "the least int64": pb.Value(integer=-(2**63)),
        "the greatest int64": pb.Value(integer=2**63 - 1),
        "2**63": pb.Value(big_integer=str(2**63)),
        "-10**100": pb.Value(big_integer=str(-(10**100))),
        "an empty str": pb.Value(text=""),
        "a str": pb.Value(text="h\u00e9llo \U0001f389\x00\n"),
        "an empty list": pb.Value(list=pb.ListValue()),
        "an empty dict": pb.Value(dict=pb.DictValue()),
        "a dict": pb.Value(dict=mixed),
        "a nested list": nested,
    }


@SUITE.requirement(
    "PYB-VALUE-01",
    "Values of every kind MUST come back as they were sent: None, bools, ints of any size, texts, lists and dicts.",
    quote="An int of more than 64 bits, in decimal digits.",
)
async def _values(context: Bridges) -> None:
    session_id = await open_session(context)
    for what, value in plain_values().items():
        check_equal(await echo(context, session_id, value), value, f"{what} there and back")
    small = await echo(context, session_id, pb.Value(big_integer="7"))
    check_equal(small, pb.Value(integer=7), "a small int that was sent in digits")


@SUITE.requirement(
    "PYB-VALUE-02",
    "Floats MUST keep their bits: infinities, NaN, -0 and subnormal numbers too.",
    quote="A float; infinities and NaN too.",
)
async def _floats(context: Bridges) -> None:
    session_id = await open_session(context)
    for number in (0.1, -0.0, math.inf, -math.inf, 5e-324, 1.7976931348623157e308):
        result = await echo(context, session_id, pb.Value(real=number))
        check_equal(result.WhichOneof("kind"), "real", f"the kind of {number} there and back")
        check_equal(struct.pack("<d", result.real).hex(), struct.pack("<d", number).hex(), f"the bits of {number}")
    check(math.isnan((await echo(context, session_id, pb.Value(real=math.nan))).real), "NaN there and back", "a number")


@SUITE.requirement(
    "PYB-VALUE-03",
    "Bytes of any size MUST come back as they were sent.",
    quote="A bytes.",
)
async def _bytes(context: Bridges) -> None:
    session_id = await open_session(context)
    for size in _SIZES:
        data = bytes(number % 251 for number in range(size))
        result = await echo(context, session_id, pb.Value(data=data))
        check_equal(result.WhichOneof("kind"), "data", f"the kind of {size} bytes there and back")
        check(result.data == data, f"the same {size} bytes", f"{len(result.data)} others")


@SUITE.requirement(
    "PYB-VALUE-04",
    "Tensors of every element type MUST come back bit by bit, of no dimension and of no element too; a type that "
    "the bridge "
    "lacks is ARGUMENT_UNPARSEABLE.",
    quote="A numpy.ndarray.",
)
async def _tensors(context: Bridges) -> None:
    session_id = await open_session(context)
    special = np.array([np.nan, -0.0, np.inf, 1.5], dtype=np.float32)
    patterns: dict[tensor_pb2.DType, bytes] = {
        tensor_pb2.D_TYPE_FLOAT32: special.tobytes(),
        tensor_pb2.D_TYPE_FLOAT16: special.astype(np.float16).tobytes(),
        tensor_pb2.D_TYPE_FLOAT64: special.astype(np.float64).tobytes(),
        tensor_pb2.D_TYPE_BFLOAT16: (special.view(np.uint32) >> 16).astype("<u2").tobytes(),
        tensor_pb2.D_TYPE_INT32: np.array([-(2**31), -1, 0, 2**31 - 1], dtype="<i4").tobytes(),
        tensor_pb2.D_TYPE_INT64: np.array([-(2**63), -1, 0, 2**63 - 1], dtype="<i8").tobytes(),
        tensor_pb2.D_TYPE_UINT8: bytes([0, 1, 128, 255]),
        tensor_pb2.D_TYPE_BOOL: bytes([0, 1, 1, 0]),
    }
    for dtype, dense in patterns.items():
        size = len(dense) // 4
        for shape, data in (([4], dense), ([2, 2], dense), ([], dense[:size]), ([0], b""), ([2, 0, 3], b"")):
            await _check_tensor(context, session_id, tensor_pb2.Tensor(dtype=dtype, shape=shape, dense=data))


async def _check_tensor(context: Bridges, session_id: str, tensor: tensor_pb2.Tensor) -> None:
    what = f"a tensor of {tensor_pb2.DType.Name(tensor.dtype)} and shape {list(tensor.shape)}"
    try:
        result = await echo(context, session_id, pb.Value(tensor=tensor))
    except KitchenError as error:
        # NumPy has no bfloat16 of its own.
        if tensor.dtype == tensor_pb2.D_TYPE_BFLOAT16 and error.reason == "ARGUMENT_UNPARSEABLE":
            return
        raise CheckFailed(f"{what} there and back", f"{error.code.name} {error.reason}: {error.message}") from error
    check_equal(result, pb.Value(tensor=tensor), f"{what} there and back")


@SUITE.requirement(
    "PYB-RESTART-01",
    "After a restart sessions MUST be gone.",
    quote="NOT_FOUND SESSION_NOT_FOUND: never opened, or closed.",
    stage=Stage.RESTART,
)
async def _end_with_the_process(context: Bridges) -> None:
    session_id = await open_session(context)
    await context.restart()
    refused = echo(context, session_id, pb.Value(integer=1))
    await check_refused(refused, "NOT_FOUND", "SESSION_NOT_FOUND", what="a session from before the restart")
