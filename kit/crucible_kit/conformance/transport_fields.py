"""What the options of a proto's fields say holds for every call of every port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import CheckFailed, CheckSkipped, check, check_is
from crucible_kit.conformance.malformed import Malformed, Rule, malformed
from crucible_kit.conformance.transport import SUITE, call, make_samples, methods
from crucible_kit.errors import KitchenError

_HANDSHAKE: tuple[tuple[MethodDescriptor, list[Message]], ...] = tuple(
    (adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"].methods_by_name[name], [request])
    for name, request in (
        ("GetAdapterInfo", adapter_pb2.GetAdapterInfoRequest(host_version="0", host_contract_versions=[1])),
        ("Probe", adapter_pb2.ProbeRequest()),
    )
)

# Each rule is a requirement of its own, so that a report says which are not looked at.
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
