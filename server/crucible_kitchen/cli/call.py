"""kitchen call: any method of any server with reflection, its messages as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import grpc
from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from crucible_client.tls import credentials
from crucible_kit.channel import open_channel
from crucible_kit.errors import NotFoundError, field_error, from_rpc_error
from crucible_kitchen.cli.connection import execute
from crucible_kitchen.cli.describe import find_symbol, proto_source
from crucible_kitchen.cli.options import Target, json_option, server_options
from crucible_kitchen.cli.reflection import ServerReflection

DEFAULT_ADDRESS = "127.0.0.1:50051"


@click.command()
@click.argument("method", required=False)
@click.argument("request", required=False)
@click.option("-d", "--data", "body", metavar="JSON", help="The request: JSON, @FILE, or - for stdin.")
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME: VALUE", help="Metadata; repeatable.")
@click.option("--max-time", type=click.FloatRange(min=0, min_open=True), help="Deadline in seconds.  [default: none]")
@click.option("--list", "list_services", is_flag=True, help="List the services, or with METHOD a service's methods.")
@click.option("--describe", metavar="SYMBOL", help="Show a service, method, message or enum.")
@server_options
@json_option
def call(
    *,
    method: str | None,
    request: str | None,
    body: str | None,
    headers: tuple[str, ...],
    max_time: float | None,
    list_services: bool,
    describe: str | None,
    target: Target,
    as_json: bool,
) -> None:
    """Call METHOD (package.Service/Method) with REQUEST as JSON, through the server's reflection.

    The server is --server, by default 127.0.0.1:50051. A stream of requests is JSON objects one after another. Streamed
    responses are printed one a line, and with --json every response is.

    Example: kitchen call crucible.kitchen.v1.RunService/GetRun '{"run_id": "run-7"}'
    """
    if request is not None and body is not None:
        raise click.UsageError("give the request once: as an argument or with -d")
    if not list_services and not describe and not method:
        raise click.UsageError("give METHOD, --list or --describe SYMBOL")
    text = _read_body(body if body is not None else request)
    metadata = _metadata(headers, target.token)

    async def work() -> None:
        async with open_channel(target.server or DEFAULT_ADDRESS, _credentials(target)) as channel:
            server = ServerReflection(channel, metadata)
            if list_services:
                await _list(server, method)
            elif describe:
                await _describe(server, describe, as_json=as_json)
            else:
                found = await server.find_method(method or "")
                await _call(channel, server, found, text, metadata, max_time, one_line=as_json)

    execute(work())


def _credentials(target: Target) -> grpc.ChannelCredentials | None:
    if not (target.tls or target.ca_cert or target.cert or target.key):
        return None
    return credentials(ca_cert=target.ca_cert, client_cert=target.cert, client_key=target.key)


def _metadata(headers: tuple[str, ...], token: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for header in headers:
        name, separator, value = header.partition(":")
        if not separator or not name.strip():
            raise click.BadParameter(f"{header!r} must be 'name: value'", param_hint="-H")
        pairs.append((name.strip().lower(), value.strip()))
    if token and all(name != "authorization" for name, _ in pairs):
        pairs.append(("authorization", f"Bearer {token}"))
    return tuple(pairs)


def _read_body(given: str | None) -> str:
    if given == "-":
        return sys.stdin.read()
    if given is not None and given.startswith("@"):
        try:
            return sys.stdin.read() if given == "@-" else Path(given[1:]).read_text("utf-8")
        except OSError as error:
            raise click.BadParameter(f"cannot read {given[1:]}: {error.strerror}", param_hint="-d") from error
    return given or ""


async def _list(server: ServerReflection, service: str | None) -> None:
    if service is None:
        names = await server.services()
    else:
        await server.load_symbol(service)
        names = [each.full_name for each in find_symbol(server.pool, service).methods]
    for name in names:
        click.echo(name)


async def _describe(server: ServerReflection, symbol: str, *, as_json: bool) -> None:
    symbol = symbol.replace("/", ".").strip(".")
    try:
        await server.load_symbol(symbol)
    except NotFoundError:
        # Some servers know their methods by their services only.
        await server.load_symbol(symbol.rpartition(".")[0])
    found = find_symbol(server.pool, symbol)
    if not as_json:
        click.echo(proto_source(found))
        return
    kinds = {
        "ServiceDescriptor": descriptor_pb2.ServiceDescriptorProto,
        "MethodDescriptor": descriptor_pb2.MethodDescriptorProto,
        "EnumDescriptor": descriptor_pb2.EnumDescriptorProto,
        "Descriptor": descriptor_pb2.DescriptorProto,
    }
    as_message = kinds[type(found).__name__]()
    found.CopyToProto(as_message)
    click.echo(json_format.MessageToJson(as_message, indent=None, preserving_proto_field_name=True))


async def _call(
    channel: grpc.aio.Channel,
    server: ServerReflection,
    method: MethodDescriptor,
    body: str,
    metadata: tuple[tuple[str, str], ...],
    timeout: float | None,
    *,
    one_line: bool,
) -> None:
    requests = _requests(method, body, server)
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call_method: Any = getattr(channel, shape)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    answer = call_method(
        _stream(requests) if method.client_streaming else requests[0], metadata=metadata, timeout=timeout
    )
    try:
        if not method.server_streaming:
            await _print(await answer, server, one_line=one_line)
            return
        async for each in answer:
            await _print(each, server, one_line=True)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    finally:
        answer.cancel()


def _requests(method: MethodDescriptor, body: str, server: ServerReflection) -> list[Message]:
    """The JSON objects of the body as messages; one, empty without a body, unless the method takes a stream."""
    kind = message_factory.GetMessageClass(method.input_type)
    found = []
    try:
        rest = body.strip()
        while rest:
            value, end = json.JSONDecoder().raw_decode(rest)
            found.append(json_format.ParseDict(value, kind(), descriptor_pool=server.pool))
            rest = rest[end:].lstrip()
    except (ValueError, json_format.ParseError, AttributeError) as error:
        problem = f"is not JSON of {method.input_type.full_name}: {error}"
        raise field_error("request", problem, reason="REQUEST_INVALID") from error
    if method.client_streaming:
        return found
    if len(found) > 1:
        raise field_error("request", f"has {len(found)} objects, {method.name} takes one", reason="REQUEST_INVALID")
    return found or [kind()]


async def _stream(messages: list[Message]) -> AsyncIterator[Message]:
    for each in messages:
        yield each


async def _print(message: Message, server: ServerReflection, *, one_line: bool) -> None:
    await server.load_any_types(message)
    text = json_format.MessageToJson(
        message,
        indent=None if one_line else 2,
        preserving_proto_field_name=True,
        ensure_ascii=False,
        descriptor_pool=server.pool,
    )
    click.echo(text)
