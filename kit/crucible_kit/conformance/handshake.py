"""What every adapter answers before it is used: who it is, what it can, and whether it is ready."""

from __future__ import annotations

import re

from google.protobuf import struct_pb2

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.adapter import to_struct
from crucible_kit.capabilities import CAPABILITIES
from crucible_kit.conformance.context import Context, handshake
from crucible_kit.conformance.expect import CheckFailed, CheckSkipped, check, check_equal, check_is, check_refused
from crucible_kit.conformance.requirement import ALL_PORTS, Stage, Suite
from crucible_kit.errors import KitchenError
from crucible_kit.ports import PORTS
from crucible_kit.settings import unknown_key

SUITE = Suite(port=ALL_PORTS)
_FAR_VERSIONS = (4_000_000_000, 4_000_000_001)
_CAPABILITY = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Of an instance that no host has configured.
_INSTANCE = "crucible-conformance"


@SUITE.requirement(
    "HSK-INFO-01",
    "GetAdapterInfo MUST answer with the adapter's name, the contract versions it speaks and an instance id.",
    quote="GetAdapterInfo is the handshake: the first call on a connection, answered before Configure.",
    stage=Stage.FIRST,
)
async def _says_who_it_is(context: Context) -> None:
    info = await handshake(context.adapter)
    check(bool(info.name), "a name", "an empty one")
    check(len(info.contract_versions) > 0, "at least one contract version", "none")
    check(bool(info.instance_id), "an instance id", "an empty one")


@SUITE.requirement(
    "HSK-INFO-02",
    "GetAdapterInfo MUST list every port that the adapter serves, by the full name of its service, once.",
    quote="Full name of the service, such as crucible.port.training.v1.TrainingService.",
    stage=Stage.FIRST,
)
async def _lists_its_ports(context: Context) -> None:
    services = [each.service for each in (await handshake(context.adapter)).ports]
    check_equal(len(set(services)), len(services), "the number of listed services without repeats")
    name = context.port.service.full_name
    check(name in services, f"{name} among the ports", services)


@SUITE.requirement(
    "HSK-INFO-03",
    "GetAdapterInfo MUST have no side effects: asked again, an adapter that was not started anew gives the same "
    "instance id "
    "and the same ports.",
    quote="New at every start of the adapter's process: a changed id means that its sessions are gone.",
    stage=Stage.FIRST,
)
async def _is_the_same_when_asked_again(context: Context) -> None:
    first, again = await handshake(context.adapter), await handshake(context.adapter)
    check_equal(again.instance_id, first.instance_id, "the instance id of a second GetAdapterInfo")
    check_equal(again.ports, first.ports, "the ports of a second GetAdapterInfo")


@SUITE.requirement(
    "HSK-VERSION-01",
    "An adapter that speaks none of the host's contract versions MUST refuse with FAILED_PRECONDITION "
    "CONTRACT_VERSION_UNSUPPORTED.",
    quote="FAILED_PRECONDITION CONTRACT_VERSION_UNSUPPORTED when no contract version is common to both sides.",
    stage=Stage.FIRST,
)
async def _refuses_a_foreign_contract(context: Context) -> None:
    request = adapter_pb2.GetAdapterInfoRequest(host_version="0", host_contract_versions=_FAR_VERSIONS)
    call = context.adapter.GetAdapterInfo(request)
    await check_refused(
        call,
        "FAILED_PRECONDITION",
        "CONTRACT_VERSION_UNSUPPORTED",
        what=f"a host that speaks only {list(_FAR_VERSIONS)}",
    )


@SUITE.requirement(
    "HSK-VERSION-02",
    "A host that speaks further contract versions beside a common one MUST be answered.",
    quote="the highest common one is used",
    stage=Stage.FIRST,
)
async def _takes_a_host_that_knows_more(context: Context) -> None:
    versions = [*context.info.contract_versions, *_FAR_VERSIONS]
    await context.adapter.GetAdapterInfo(
        adapter_pb2.GetAdapterInfoRequest(host_version="0", host_contract_versions=versions)
    )


@SUITE.requirement(
    "HSK-PROBE-01",
    "Probe MUST say that the adapter is ready, or why it is not; this suite needs one that is.",
    quote="Probe answers whether the adapter can serve now, its own dependencies included.",
    stage=Stage.FIRST,
)
async def _is_ready(context: Context) -> None:
    response = await context.adapter.Probe(adapter_pb2.ProbeRequest())
    state = adapter_pb2.ProbeResponse.State.Name(response.state)
    check(response.state == adapter_pb2.ProbeResponse.STATE_READY, "STATE_READY", f"{state} {response.detail}")


@SUITE.requirement(
    "HSK-CAP-01",
    "Capabilities MUST be named PORT.NAME in lower case, after the port that has them, each once.",
    quote="What optional behaviour it has, such as training.optimizer_state.",
    stage=Stage.FIRST,
)
async def _names_capabilities_well(context: Context) -> None:
    ports = {port.service.full_name: name for name, port in PORTS.items()}
    for support in context.info.ports:
        declared = list(support.capabilities)
        check_equal(
            len(set(declared)), len(declared), f"the number of capabilities of {support.service} without repeats"
        )
        prefix = f"{ports[support.service]}." if support.service in ports else ""
        for name in declared:
            good = _CAPABILITY.fullmatch(name) is not None and name.startswith(prefix)
            check(good, f"capabilities of {support.service} to be named {prefix or 'port.'}NAME", repr(name))


@SUITE.requirement(
    "HSK-CAP-02",
    "Declared capabilities SHOULD be known to the contract: a misspelt one declares nothing.",
    stage=Stage.FIRST,
)
async def _declares_what_is_known(context: Context) -> None:
    for name in sorted(context.capabilities):
        known = [each for each, capability in CAPABILITIES.items() if capability.port == context.port.name]
        check(name in known, "a capability that the contract knows", f"{name!r}: {unknown_key(name, known)}")


@SUITE.requirement(
    "HSK-DESCRIPTOR-01",
    "`descriptor_sha256` MUST be empty or 64 lower-case hex digits.",
    quote="SHA-256 of the service's serialised FileDescriptorProto as the adapter was built with.",
    stage=Stage.FIRST,
)
async def _hashes_its_descriptor(context: Context) -> None:
    for support in context.info.ports:
        value = support.descriptor_sha256
        check(not value or _SHA256.fullmatch(value) is not None, f"a SHA-256 for {support.service}", repr(value))


@SUITE.requirement(
    "HSK-DESCRIPTOR-02",
    "An adapter SHOULD be built with the protos that its host has.",
    quote="A difference is reported, never refused.",
    stage=Stage.FIRST,
)
async def _has_the_same_protos(context: Context) -> None:
    service = context.port.service
    given = next((each.descriptor_sha256 for each in context.info.ports if each.service == service.full_name), "")
    if not given:
        raise CheckSkipped("the adapter does not say which protos it was built with")
    check_equal(given, context.port.descriptor_sha256, f"the hash of {service.file.name}")


@SUITE.requirement(
    "HSK-CONFIG-01",
    "Configure MUST refuse settings that the adapter does not know, with INVALID_ARGUMENT FIELD_INVALID, and every "
    "settings "
    "with UNIMPLEMENTED CAPABILITY_MISSING when it takes none.",
    quote="Settings that do not fit the adapter's schema are INVALID_ARGUMENT FIELD_INVALID with the key.",
)
async def _refuses_unknown_settings(context: Context) -> None:
    schema = _schema(context)
    if schema is not None and schema.fields["additionalProperties"].bool_value:
        raise CheckSkipped("the adapter's schema allows any key")
    request = _configure(context, generation=1, no_setting_is_called_so=True)
    expected = "an unknown setting to be refused with INVALID_ARGUMENT FIELD_INVALID"
    try:
        await context.adapter.Configure(request)
    except KitchenError as error:
        if error.code.name == "UNIMPLEMENTED" and schema is None:
            check_is(error, "UNIMPLEMENTED", "CAPABILITY_MISSING", expected="the reason CAPABILITY_MISSING")
            return
        check_is(error, "INVALID_ARGUMENT", "FIELD_INVALID", expected=expected)
        return
    raise CheckFailed(expected, "they were accepted")


@SUITE.requirement(
    "HSK-CONFIG-02",
    "Configure MUST be idempotent by instance and generation, and refuse a lower generation than the one in force with "
    "FAILED_PRECONDITION STALE_GENERATION.",
    quote="Idempotent by instance and generation; a lower generation than the one in force is FAILED_PRECONDITION "
    "STALE_GENERATION.",
)
async def _counts_generations(context: Context) -> None:
    schema = _schema(context)
    if schema is None:
        raise CheckSkipped("the adapter takes no settings")
    if schema.fields["required"].list_value.values:
        raise CheckSkipped("the adapter needs settings that this suite does not know")
    for _ in range(2):
        await context.adapter.Configure(_configure(context, generation=2))
    stale = context.adapter.Configure(_configure(context, generation=1))
    await check_refused(stale, "FAILED_PRECONDITION", "STALE_GENERATION", what="generation 1 after 2")


def _schema(context: Context) -> struct_pb2.Struct | None:
    service = context.port.service.full_name
    support = next((each for each in context.info.ports if each.service == service), None)
    return support.config_schema if support is not None and support.HasField("config_schema") else None


def _configure(context: Context, *, generation: int, **settings: object) -> adapter_pb2.ConfigureRequest:
    request = adapter_pb2.ConfigureRequest(
        instance=_INSTANCE, service=context.port.service.full_name, generation=generation
    )
    if settings:
        request.settings.CopyFrom(to_struct(settings))
    return request


@SUITE.requirement(
    "HSK-RESTART-01",
    "An adapter that was killed and started again MUST have another instance id.",
    quote="New at every start of the adapter's process: a changed id means that its sessions are gone.",
    stage=Stage.RESTART,
)
async def _is_another_after_a_restart(context: Context) -> None:
    before = context.info.instance_id
    after = (await context.restart()).instance_id
    check(after != before, f"another instance id than {before!r}", repr(after))
