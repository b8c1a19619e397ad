"""Errors of every port: these requirements look at every refusal of the run, so they come last."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from google.protobuf.message import Message
from google.rpc import error_details_pb2

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import CheckSkipped, check
from crucible_kit.conformance.malformed import filled
from crucible_kit.conformance.probe import Refusal
from crucible_kit.conformance.requirement import Stage
from crucible_kit.conformance.transport import SUITE, call, methods
from crucible_kit.errors import KitchenError

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
