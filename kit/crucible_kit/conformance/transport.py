"""What holds for every call of every port: methods, deadlines, cancelling, sizes, concurrency."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.capabilities import capability_of
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import CheckFailed, CheckSkipped, check, check_is, describe_error
from crucible_kit.conformance.malformed import filled
from crucible_kit.conformance.requirement import ALL_PORTS, Samples, Suite
from crucible_kit.errors import KitchenError, UnavailableError

SUITE = Suite(port=ALL_PORTS)
_CALLS_AT_A_TIME = 64
_CANCELLED_CALLS = 64
_SHORT_SECONDS = 0.001
_TRIES_OF_WRITES = 3
# What no call is answered with.
_BUGS = ("INTERNAL", "UNKNOWN")


def methods(context: Context) -> list[MethodDescriptor]:
    """The port's RPCs."""
    return list(context.port.service.methods)


async def make_samples(context: Context) -> dict[str, list[Message]]:
    """The messages of one valid call of each of the port's methods."""
    make = context.suite.make_samples
    given: Samples = {} if make is None else await make(context)
    return {each.name: _messages(each, given) for each in methods(context)}


def _messages(method: MethodDescriptor, given: Samples) -> list[Message]:
    sample = given.get(method.name)
    if sample is None:
        return [filled(method.input_type)]
    return list(sample) if isinstance(sample, Sequence) else [sample]


async def ping(context: Context) -> Any:
    """A call that must be answered."""
    if context.suite.ping is not None:
        return await context.suite.ping(context)
    return await context.adapter.Probe(adapter_pb2.ProbeRequest())


async def call(context: Context, method: MethodDescriptor, messages: Sequence[Message], **options: Any) -> Any:
    """Calls a method of any shape to its end; of a stream of answers the last.

    gRPC's core may drop the status of a call that is refused while its caller still writes: such a call is sent again.
    """
    for _ in range(_TRIES_OF_WRITES - 1 if method.client_streaming else 0):
        try:
            return await _call_once(context, method, messages, **options)
        except UnavailableError as error:
            if error.reason != "CONNECTION_LOST":
                raise
    return await _call_once(context, method, messages, **options)


async def _call_once(context: Context, method: MethodDescriptor, messages: Sequence[Message], **options: Any) -> Any:
    stub = context.stub if method.containing_service.full_name == context.port.service.full_name else context.adapter
    function = getattr(stub, method.name)
    request: Any = _stream(messages) if method.client_streaming else messages[0]
    if not method.server_streaming:
        return await function(request, **options)
    answer = None
    async for each in function(request, **options):
        answer = each
    return answer


async def _call_undone(context: Context, method: MethodDescriptor, messages: Sequence[Message], **options: Any) -> Any:
    """The same; what the call made goes after the check."""
    undo, answer = context.suite.undo.get(method.name), None
    try:
        answer = await call(context, method, messages, **options)
        return answer
    finally:
        if undo is not None:
            context.defer(lambda: undo(context, messages, answer))


async def _stream(messages: Sequence[Message]) -> AsyncIterator[Message]:
    for each in messages:
        yield each


@SUITE.requirement(
    "XPT-METHOD-01",
    "A method that the service does not have MUST be UNIMPLEMENTED.",
)
async def _refuses_unknown_methods(context: Context) -> None:
    name = f"/{context.port.service.full_name}/NoMethodIsCalledSo"
    unknown = context.channel.unary_unary(
        name,
        request_serializer=adapter_pb2.ProbeRequest.SerializeToString,
        response_deserializer=adapter_pb2.ProbeResponse.FromString,
    )
    try:
        await unknown(adapter_pb2.ProbeRequest())
    except KitchenError as error:
        check_is(error, "UNIMPLEMENTED", expected="UNIMPLEMENTED")
        return
    raise CheckFailed("UNIMPLEMENTED", "an answer")


@SUITE.requirement(
    "XPT-METHOD-02",
    "Every method of the port MUST be served; one that belongs to a capability that is not declared is UNIMPLEMENTED "
    "CAPABILITY_MISSING.",
    quote="What is not named answers UNIMPLEMENTED CAPABILITY_MISSING.",
)
async def _serves_every_method(context: Context) -> None:
    samples = await make_samples(context)
    for method in methods(context):
        capability = capability_of(f"/{context.port.service.full_name}/{method.name}")
        missing = capability and capability not in context.capabilities
        expected = f"{method.name} to be " + (
            f"UNIMPLEMENTED CAPABILITY_MISSING, as {capability} is not declared" if missing else "served"
        )
        try:
            await _call_undone(context, method, samples[method.name])
        except KitchenError as error:
            if missing:
                check_is(error, "UNIMPLEMENTED", "CAPABILITY_MISSING", expected=expected)
            else:
                check(error.code.name not in ("UNIMPLEMENTED", *_BUGS), expected, describe_error(error))
            continue
        check(not missing, expected, "an answer")


@SUITE.requirement(
    "XPT-DEADLINE-01",
    "A call whose deadline is too short MUST end with OK or DEADLINE_EXCEEDED and leave the adapter serving.",
)
async def _outlives_short_deadlines(context: Context) -> None:
    samples = await make_samples(context)
    for method in methods(context):
        messages = samples[method.name]
        try:
            await _call_undone(context, method, messages, timeout=_SHORT_SECONDS)
        except KitchenError as error:
            if error.code.name != "DEADLINE_EXCEEDED":
                # It was quicker than its deadline: then it says what it always says.
                check(error.code.name not in _BUGS, "DEADLINE_EXCEEDED", describe_error(error))
    await ping(context)


@SUITE.requirement(
    "XPT-CANCEL-01",
    "Calls that their caller cancels MUST leave the adapter serving.",
)
async def _outlives_cancelled_calls(context: Context) -> None:
    calls = [asyncio.ensure_future(ping(context)) for _ in range(_CANCELLED_CALLS)]
    # Some have begun by then, others have not.
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    for each in calls:
        each.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    samples = await make_samples(context)
    for method in methods(context):
        if method.server_streaming and not method.client_streaming:
            try:
                async with aclosing(getattr(context.stub, method.name)(samples[method.name][0])) as stream:
                    await anext(stream, None)
            except KitchenError:
                continue  # what the port's own requirements look at
    await ping(context)


@SUITE.requirement(
    "XPT-SIZE-01",
    "An adapter MUST take a request as large as the largest it says it takes.",
    quote="The largest message it receives, in bytes. 0: 4 MiB.",
)
async def _takes_large_messages(context: Context) -> None:
    # Room for the tags and the other fields.
    size = context.max_message_bytes - 64 * 1024
    request = adapter_pb2.GetAdapterInfoRequest(host_version="x" * size, host_contract_versions=[1])
    expected = f"a request of {size} bytes not to be refused for its size"
    try:
        await context.adapter.GetAdapterInfo(request)
    except KitchenError as error:
        # Its text is longer than the field allows, which may be said only by whoever has got it.
        check_is(error, "INVALID_ARGUMENT", "FIELD_INVALID", expected=expected)


@SUITE.requirement(
    "XPT-LOAD-01",
    "As many calls at a time as the adapter says it takes (64 when it names no limit) MUST all be answered.",
    quote="Calls it takes at a time. 0: not limited.",
)
async def _answers_calls_beside_each_other(context: Context) -> None:
    count = min(context.max_in_flight or _CALLS_AT_A_TIME, 1024)
    await asyncio.gather(*(ping(context) for _ in range(count)))


@SUITE.requirement(
    "XPT-LOAD-02",
    "A call over the adapter's limit MUST be answered or be refused with RESOURCE_EXHAUSTED and a reason.",
    quote="Calls it takes at a time. 0: not limited.",
)
async def _refuses_what_is_too_much(context: Context) -> None:
    if not context.max_in_flight:
        raise CheckSkipped("the adapter names no limit")
    calls = (ping(context) for _ in range(4 * min(context.max_in_flight, 1024)))
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(outcome, KitchenError):
            check_is(outcome, "RESOURCE_EXHAUSTED", expected="RESOURCE_EXHAUSTED")
        elif isinstance(outcome, BaseException):
            raise outcome
