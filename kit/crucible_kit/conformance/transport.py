"""What holds for every call of every port: errors, constraints, deadlines, sizes, concurrency."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.capabilities import capability_of
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import CheckFailed, CheckSkipped, check, check_is, describe_error
from crucible_kit.conformance.malformed import Malformed, Rule, filled, malformed
from crucible_kit.conformance.probe import Refusal
from crucible_kit.conformance.requirement import ALL_PORTS, Samples, Stage, Suite
from crucible_kit.errors import KitchenError

SUITE = Suite(port=ALL_PORTS)
_CALLS_AT_A_TIME = 64
_CANCELLED_CALLS = 64
_SHORT_SECONDS = 0.001
_MAX_TRAILER_BYTES = 8 * 1024
_REASON = re.compile(r"[A-Z][A-Z0-9_]{1,63}")
# What an exception looks like in the languages that adapters are written in.
_LEAKS = re.compile(
    r"Traceback \(most recent call last\)"
    r"|Unexpected <class '"
    r"|Exception (calling|iterating|deserializing)"
    r"|\bFile \"[^\"]+\", line \d+"
    r"|\b[A-Za-z_]*(Error|Exception)\(['\"]"
    r"|\bat [\w.$<>]+ ?\([^()]*:\d+(:\d+)?\)"
    r"|goroutine \d+ \[|panic: |runtime error: "
    r"|\*\* \([A-Z]\w*(\.\w+)*(Error)?\) |\.exs?:\d+"
    r"|java\.(lang|io|util)\.|undefined method `|Segmentation fault"
)


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
    """Calls a method of any shape to its end; of a stream of answers the last."""
    stub = context.stub if method.containing_service is context.port.service else context.adapter
    function = getattr(stub, method.name)
    request: Any = _stream(messages) if method.client_streaming else messages[0]
    if not method.server_streaming:
        return await function(request, **options)
    answer = None
    async for each in function(request, **options):
        answer = each
    return answer


async def _stream(messages: Sequence[Message]) -> AsyncIterator[Message]:
    for each in messages:
        yield each


_HANDSHAKE: tuple[tuple[MethodDescriptor, list[Message]], ...] = tuple(
    (adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"].methods_by_name[name], [request])
    for name, request in (
        ("GetAdapterInfo", adapter_pb2.GetAdapterInfoRequest(host_version="0", host_contract_versions=[1])),
        ("Probe", adapter_pb2.ProbeRequest()),
    )
)

# Constraints of the protos. Each rule is a requirement of its own, so that a report says which are not looked at.

_RULES: Mapping[Rule, tuple[str, str]] = {
    Rule.REQUIRED: ("XPT-FIELD-01", "A request without a required field"),
    Rule.MIN: ("XPT-FIELD-02", "A number below its field's least, or that is none,"),
    Rule.MAX: ("XPT-FIELD-03", "A number above its field's greatest"),
    Rule.MAX_LEN: (
        "XPT-FIELD-04",
        "A text or bytes longer than its field allows (texts without a limit: 4,096 characters)",
    ),
    Rule.MAX_ITEMS: ("XPT-FIELD-05", "A list or map with more entries than its field allows"),
    Rule.PATTERN: ("XPT-FIELD-06", "A text that does not match its field's pattern"),
    Rule.FORMAT: ("XPT-FIELD-07", "A text that does not have its field's format"),
    Rule.ENUM: ("XPT-FIELD-08", "A number that is no value of its field's enum"),
}


def _register_rule(rule: Rule, id: str, what: str) -> None:
    @SUITE.requirement(
        id,
        f"{what} MUST be refused with INVALID_ARGUMENT FIELD_INVALID, before anything is done.",
        quote="FieldConstraints says what a receiver checks before it acts",
    )
    async def _(context: Context) -> None:
        tried = 0
        samples = await make_samples(context)
        calls = [(method, samples[method.name]) for method in methods(context)]
        for method, messages in (*calls, *_HANDSHAKE):
            for place, message in enumerate(messages):
                for each in malformed(message, rule):
                    if each.request.ByteSize() < context.max_message_bytes:
                        sent = [*messages[:place], each.request, *messages[place + 1 :]]
                        await _check_field_refused(context, method, sent, each)
                        tried += 1
        if not tried:
            raise CheckSkipped("no field of this port has this rule")


for _rule, (_id, _what) in _RULES.items():
    _register_rule(_rule, _id, _what)


async def _check_field_refused(
    context: Context, method: MethodDescriptor, messages: Sequence[Message], bad: Malformed
) -> None:
    expected = f"{method.name} with {bad.path} that {bad.problem} to be refused with INVALID_ARGUMENT FIELD_INVALID"
    try:
        answer = await call(context, method, messages)
    except KitchenError as error:
        if _lacks_capability(error):
            return
        check_is(error, "INVALID_ARGUMENT", "FIELD_INVALID", expected=expected)
        return
    raise CheckFailed(expected, f"an answer: {' '.join(str(answer).split())[:200]}")


def _lacks_capability(error: KitchenError) -> bool:
    """A refusal for what the adapter does not declare may come before one for what is wrong."""
    return (error.code.name, error.reason) == ("UNIMPLEMENTED", "CAPABILITY_MISSING")


@SUITE.requirement(
    "XPT-FIELD-09",
    "A refused field MUST be named by its path in a google.rpc.BadRequest, where the adapter's gRPC can send details.",
    quote="reason FIELD_INVALID and a BadRequest that names the field's path.",
)
async def _names_the_field(context: Context) -> None:
    checked = 0
    for method, messages in (await make_samples(context)).items():
        for each in malformed(messages[0], Rule.REQUIRED):
            before = len(context.channel.refusals)
            try:
                await call(context, context.port.service.methods_by_name[method], [each.request, *messages[1:]])
            except KitchenError as error:
                refusal = context.channel.refusals[before]
                if refusal.details is None or error.reason != "FIELD_INVALID":
                    continue
                checked += 1
                named = [violation.field for violation in error.fields]
                right = any(each.field in field for field in named)
                check(right, f"the BadRequest of {method} to name {each.path}", named or "no BadRequest")
    if not checked:
        raise CheckSkipped("no refusal of a required field came with details")


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
            await call(context, method, samples[method.name])
        except KitchenError as error:
            if missing:
                check_is(error, "UNIMPLEMENTED", "CAPABILITY_MISSING", expected=expected)
            else:
                check(error.code.name != "UNIMPLEMENTED", expected, describe_error(error))
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
            await call(context, method, messages, timeout=_SHORT_SECONDS)
        except KitchenError as error:
            if error.code.name != "DEADLINE_EXCEEDED":
                # It was quicker than its deadline: then it says what it always says.
                check(error.code.name not in ("INTERNAL", "UNKNOWN"), "DEADLINE_EXCEEDED", describe_error(error))
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


# Errors. These look at every refusal of the run, so they come last.


async def _refusals(context: Context) -> list[Refusal]:
    """The adapter's own refusals so far; makes some when there are none."""
    if not any(not each.by_core for each in context.channel.refusals):
        for method in methods(context):
            try:
                await call(context, method, [filled(method.input_type)])
            except KitchenError:
                continue
        request = adapter_pb2.GetAdapterInfoRequest(host_version="0", host_contract_versions=[4_000_000_000])
        await _ignored(context.adapter.GetAdapterInfo(request))
    found = [each for each in context.channel.refusals if not each.by_core]
    if not found:
        raise CheckSkipped("the adapter has refused nothing")
    return found


async def _ignored(awaitable: Awaitable[Any]) -> None:
    with suppress(KitchenError):
        await awaitable


def _error_requirement(id: str, text: str, *, quote: str = "") -> Callable[..., Any]:
    """A requirement on every refusal: the decorated function says what is wrong with one, or nothing."""

    def register(problem: Callable[[Refusal], str]) -> Callable[[Refusal], str]:
        @SUITE.requirement(id, text, quote=quote, stage=Stage.LAST)
        async def _(context: Context) -> None:
            for each in await _refusals(context):
                found = problem(each)
                check(not found, text.partition(":")[0], f"{found} in {each}")

        return problem

    return register


def _details(refusal: Refusal, kind: type[Message]) -> list[Any]:
    if refusal.details is None:
        return []
    packed = [each for each in refusal.details.details if each.TypeName() == kind.DESCRIPTOR.full_name]
    return [kind.FromString(each.value) for each in packed]


@_error_requirement(
    "XPT-ERROR-01",
    "An error MUST carry its reason in UPPER_SNAKE_CASE in the trailer crucible-reason, for callers that cannot "
    "read details.",
)
def _no_reason(refusal: Refusal) -> str:
    if not refusal.reason:
        return "no crucible-reason"
    return "" if _REASON.fullmatch(refusal.reason) else f"the reason {refusal.reason!r}"


@_error_requirement(
    "XPT-ERROR-02",
    "An error with details MUST have exactly one google.rpc.ErrorInfo among them; an adapter whose gRPC cannot send "
    "details "
    "passes with the trailer crucible-reason alone.",
)
def _not_one_error_info(refusal: Refusal) -> str:
    count = len(_details(refusal, error_details_pb2.ErrorInfo))
    return "" if refusal.details is None or count == 1 else f"{count} ErrorInfo"


@_error_requirement(
    "XPT-ERROR-03",
    "An ErrorInfo MUST name a domain, and the reason of the trailer.",
)
def _wrong_error_info(refusal: Refusal) -> str:
    for info in _details(refusal, error_details_pb2.ErrorInfo):
        if not info.domain:
            return "no domain"
        if info.reason != refusal.reason:
            return f"the reason {info.reason!r} in the details and {refusal.reason!r} in the trailer"
    return ""


@_error_requirement(
    "XPT-ERROR-04",
    "The google.rpc.Status of an error's details MUST have the code and the message of the call's own status.",
)
def _another_status(refusal: Refusal) -> str:
    if refusal.details is None:
        return ""
    inner = (refusal.details.code, refusal.details.message)
    outer = (refusal.code.value[0], refusal.message)
    return "" if inner == outer else f"code {inner[0]} and message {inner[1]!r} in the details"


@_error_requirement(
    "XPT-ERROR-05",
    "An error MUST hold no exception's text, no stack trace and no path of source code.",
)
def _leaked_text(refusal: Refusal) -> str:
    found = _LEAKS.search(refusal.message)
    return f"{found[0]!r}" if found is not None else ""


@_error_requirement(
    "XPT-ERROR-06",
    "An error MUST have a code that says who is at fault: UNKNOWN is what gRPC makes of an exception that nobody "
    "caught.",
)
def _unknown_code(refusal: Refusal) -> str:
    return "UNKNOWN" if refusal.code.name == "UNKNOWN" else ""


@_error_requirement(
    "XPT-ERROR-07",
    "The trailers of an error MUST have at most 8 KiB together: a receiver may drop more, the status with it.",
)
def _large_trailers(refusal: Refusal) -> str:
    size = refusal.trailer_bytes
    return f"{size} bytes of trailers" if size > _MAX_TRAILER_BYTES else ""


@_error_requirement(
    "XPT-ERROR-08",
    "An error MUST have at most one each of BadRequest, RetryInfo, PreconditionFailure, ResourceInfo and DebugInfo.",
)
def _repeated_details(refusal: Refusal) -> str:
    for name in ("BadRequest", "RetryInfo", "PreconditionFailure", "ResourceInfo", "DebugInfo"):
        count = len(_details(refusal, getattr(error_details_pb2, name)))
        if count > 1:
            return f"{count} {name}"
    return ""
