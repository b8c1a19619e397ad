"""The other direction: sends what was recorded to a real adapter and compares its answers, which makes a recording a
conformance case.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.adapter import CONTRACT_VERSIONS, distribution_version
from crucible_kit.cassettes.caller import Caller, Outcome
from crucible_kit.cassettes.codec import code_name, detail_of
from crucible_kit.cassettes.fields import rewrite
from crucible_kit.cassettes.format import Call, Cassette, require_calls
from crucible_kit.cassettes.matching import Approximate, Comparison, Difference, Rules, rules_of
from crucible_kit.cassettes.methods import ADAPTER_SERVICE, FINISHED_STATES
from crucible_kit.cassettes.placeholders import Placeholder, Unbound, parse, render
from crucible_kit.errors import UnavailableError, field_error

_INFO_SECONDS = 30.0
_UNKNOWN_METHOD = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class Finding(NamedTuple):
    """One place where an adapter's answer is not as recorded."""

    call: Call
    difference: Difference

    def __str__(self) -> str:
        return f"call {self.call.number} (line {self.call.line}), {self.call.method.name}: {self.difference}"


@dataclass(kw_only=True)
class Report:
    """What a check found.

    Attributes:
        checked: calls that were made and compared.
        skipped: why the whole cassette was not checked; empty: it was.
    """

    checked: int = 0
    findings: list[Finding] = field(default_factory=list)
    skipped: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.findings


def check_cassette(
    cassette: Cassette,
    channel: grpc.Channel,
    *,
    parameters: Mapping[str, str] | None = None,
    metadata: Sequence[tuple[str, str]] = (),
    tolerance: Approximate | None = None,
) -> Report:
    """Makes the recorded calls on an adapter, in their order, and compares what it answers.

    Ids of the adapter's own are taken as they come and used from then on; UUIDs of the caller are made anew. Numbers in
    responses may differ by a tolerance, times (fields ending in _time) are left out, and so is how far an operation has
    come when the call that made it answers. Of an error, code, reason and bad fields count, not its text. Calls of
    AdapterService are left out: another adapter calls itself something else.

    Args:
        parameters: values of the cassette's parameters; for a secret, under `secret.name`.
        metadata: sent with every call.
        tolerance: of numbers in responses that no rule of the cassette is about.

    Raises:
        InvalidArgumentError: PARAMETER_MISSING; CASSETTE_EMPTY when there is no call to make.
        UnavailableError: the target does not answer at all.
    """
    require_calls(cassette, _port_calls(cassette))
    values = dict(parameters or {})
    for name, description in cassette.header.parameters.items():
        if name not in values:
            raise field_error(name, f"the recording needs a value: {description}", reason="PARAMETER_MISSING")
    missing = _missing_capabilities(cassette, channel, metadata)
    if missing:
        return Report(skipped=f"the adapter does not declare {', '.join(missing)}")
    return _Check(cassette, Caller(channel, metadata), values, tolerance or Approximate(path="response.**")).run()


def _port_calls(cassette: Cassette) -> list[Call]:
    return [call for call in cassette.calls if call.method.service != ADAPTER_SERVICE]


def _missing_capabilities(cassette: Cassette, channel: grpc.Channel, metadata: Sequence[tuple[str, str]]) -> list[str]:
    """Of what the cassette needs, what the target says it lacks. One without AdapterService, such as a kitchen, is
    taken to have all.
    """
    request = adapter_pb2.GetAdapterInfoRequest(
        host_version=distribution_version(), host_contract_versions=CONTRACT_VERSIONS
    )
    ask: Any = channel.unary_unary(
        f"/{ADAPTER_SERVICE}/GetAdapterInfo",
        request_serializer=adapter_pb2.GetAdapterInfoRequest.SerializeToString,
        response_deserializer=adapter_pb2.GetAdapterInfoResponse.FromString,
    )
    try:
        info = ask(request, timeout=_INFO_SECONDS, metadata=tuple(metadata), wait_for_ready=True)
    except grpc.RpcError as error:
        failed: Any = error
        if failed.code() in _UNKNOWN_METHOD:
            return []
        raise UnavailableError(
            f"the target does not say what it is ({failed.code().name}: {failed.details()})",
            reason="ADAPTER_UNAVAILABLE",
        ) from error
    declared = {capability for port in info.ports for capability in port.capabilities}
    return sorted(set(cassette.header.requires) - declared)


def check_rules(cassette: Cassette, tolerance: Approximate) -> Rules:
    """The cassette's rules, and after them what holds for every check."""
    enqueue = {
        call.method.name
        for call in cassette.calls
        if "operation" in call.method.response.DESCRIPTOR.fields_by_name and not call.method.is_poll
    }
    common = Rules(
        ignore=["response.**_time", *(f"{name}/response.operation.state" for name in sorted(enqueue))],
        approx=[tolerance],
    )
    return rules_of(cassette.path, cassette.header.rules).extended(common)


class _Check:
    def __init__(self, cassette: Cassette, caller: Caller, values: dict[str, str], tolerance: Approximate) -> None:
        self._rules = check_rules(cassette, tolerance)
        self._calls = _port_calls(cassette)
        self._caller = caller
        self._bindings = values
        self._report = Report()

    def run(self) -> Report:
        """Makes every call as soon as those have ended that had ended before it in the recording."""
        going: dict[int, Future[Outcome]] = {}
        with ThreadPoolExecutor(max(1, len(self._calls)), "check") as threads:
            for call in self._calls:
                if self._is_superseded(call):
                    continue
                for before in self._calls:
                    if before.number in going and before.end_line < call.line:
                        self._settle(before, going.pop(before.number))
                try:
                    requests = [self._filled(message) for message in call.requests]
                except Unbound as error:
                    self._find(call, Difference("request", f"a value of {error}", "none: no answer has said it"))
                    continue
                going[call.number] = threads.submit(self._caller.make, call, requests)
            for call in self._calls:
                if call.number in going:
                    self._settle(call, going.pop(call.number))
        return self._report

    def _is_superseded(self, call: Call) -> bool:
        """Whether a poll answered that an operation goes on: when it is asked matters."""
        if not call.method.is_poll or not call.responses:
            return False
        response: Any = call.responses[0]
        return response.operation.state not in FINISHED_STATES

    def _filled(self, message: Message) -> Message:
        """A request with values in the places of placeholders. Raises Unbound."""
        copy = type(message)()
        copy.CopyFrom(message)
        rewrite(copy, lambda _, text: self._render(text), lambda _, data: data)
        return copy

    def _render(self, text: str) -> str:
        for part in parse(text):
            if isinstance(part, Placeholder) and part.kind == "uuid":
                self._bindings.setdefault(part.key, str(uuid.uuid4()))
        return render(text, self._bindings)

    def _find(self, call: Call, difference: Difference) -> None:
        self._report.findings.append(Finding(call, difference))

    def _settle(self, call: Call, going: Future[Outcome]) -> None:
        """Compares what a call brought, and takes its ids."""
        outcome = going.result()
        self._report.checked += 1
        comparison = Comparison(self._rules, self._bindings, call.method.name, keep_going=True)
        recorded, stream = call.responses, call.method.server_streaming
        for index, (expected, actual) in enumerate(zip(recorded, outcome.responses, strict=False)):
            comparison.compare(expected, actual, f"response[{index}]" if stream else "response")
        self._bindings.update(comparison.found)
        differences = list(comparison.differences)
        end = call.steps[-1]
        if not (end.kind == "cancel" and outcome.cancelled):
            differences += self._end_differences(call, outcome)
            counted = not self._rules.ignores(call.method.name, "response")
            if counted and len(recorded) != len(outcome.responses) and not differences:
                differences.append(
                    Difference("response", f"{len(recorded)} responses", f"{len(outcome.responses)} responses")
                )
        for difference in differences:
            self._find(call, difference)

    def _end_differences(self, call: Call, outcome: Outcome) -> list[Difference]:
        end = call.steps[-1]
        expected = end.status or status_pb2.Status()
        facts: list[tuple[str, object, object]] = [
            ("status.code", code_name(expected.code), code_name(outcome.status.code)),
            ("status.reason", end.reason, outcome.reason),
        ]
        # Some stacks can't send details.
        if outcome.status.details:
            facts.append(("status.fields", _bad_fields(expected), _bad_fields(outcome.status)))
        return [
            Difference(
                path, repr(recorded), repr(got) if path != "status.code" else f"{got!r} ({outcome.status.message})"
            )
            for path, recorded, got in facts
            if recorded != got and not self._rules.ignores(call.method.name, path)
        ]


def _bad_fields(status: status_pb2.Status) -> list[str]:
    """The paths of the fields that a status refuses, sorted."""
    bad = detail_of(status, error_details_pb2.BadRequest)
    if bad is not None:
        return sorted({each.field for each in bad.field_violations})
    return []
