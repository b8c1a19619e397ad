from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from crucible.kitchen.v1 import adapter_admin_pb2, run_pb2
from crucible.kitchen.v1.adapter_admin_pb2_grpc import AdapterAdminServiceStub
from crucible.kitchen.v1.run_pb2_grpc import RunServiceStub
from crucible_kit.channel import connect
from crucible_kit.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnimplementedError,
    from_rpc_error,
)
from crucible_kitchen.api.access import METHOD_ROLES, MUTATIONS, OPEN_METHODS, Tokens
from tests.server.fakes import Api, serve, tokens

READ, RUN, ADMIN = "read-token-0123456789", "run-token-0123456789", "admin-token-0123456789"


def open_channel(address: str) -> Any:
    """A bare grpc channel; the generated stubs' types know only the synchronous one."""
    return grpc.aio.insecure_channel(address)


async def ask_reflection(
    address: str, *requests: reflection_pb2.ServerReflectionRequest, metadata: Any = ()
) -> list[Any]:
    async with open_channel(address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        return [response async for response in stub.ServerReflectionInfo(iter(requests), metadata=metadata)]


async def served_methods(address: str) -> set[str]:
    """What the server itself says it serves, not what our code thinks."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (response,) = await ask_reflection(address, request)
    services = [Default().FindServiceByName(each.name) for each in response.list_services_response.service]
    return {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}


async def test_every_served_method_has_a_role_and_no_other(api: Api) -> None:
    methods = await served_methods(api.address)
    assert len(methods) > 25
    assert methods == set(METHOD_ROLES) | OPEN_METHODS
    assert not set(METHOD_ROLES) & OPEN_METHODS
    assert set(METHOD_ROLES) >= MUTATIONS


async def test_reflection_decodes_error_details(api: Api) -> None:
    names = ("google.rpc.ErrorInfo", "google.rpc.BadRequest", "crucible.kitchen.v1.RunService")
    requests = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in names]
    responses = await ask_reflection(api.address, *requests)
    for name, response in zip(names, responses, strict=True):
        answered = response.file_descriptor_response.file_descriptor_proto
        files = [FileDescriptorProto.FromString(each) for each in answered]
        defined = {f"{file.package}.{each.name}" for file in files for each in (*file.message_type, *file.service)}
        assert name in defined


async def test_without_tokens_everybody_may_call_what_is_in_the_table(api: Api) -> None:
    await api.new_run()
    await api.runs.GetRun(run_pb2.GetRunRequest(run_id="run-1"))
    with pytest.raises(UnimplementedError) as caught:
        await api.channel.unary_unary(
            "/crucible.kitchen.v1.RunService/DropEverything",
            request_serializer=run_pb2.GetRunRequest.SerializeToString,
        )(run_pb2.GetRunRequest(run_id="x"))
    assert caught.value.reason == "METHOD_MISSING"


async def test_tokens_and_roles(tmp_path: Path) -> None:
    get = run_pb2.GetRunRequest(run_id="run-1")
    cancel = run_pb2.CancelRunRequest(run_id="run-1")
    probe = adapter_admin_pb2.ProbeAdapterRequest(port="blob")
    mapping = adapter_admin_pb2.AdapterMapping(adapter="builtin:local")
    add = adapter_admin_pb2.AddAdapterRequest(port="blob", mapping=mapping)
    async with serve(tmp_path, tokens=tokens(read=READ, run=RUN, admin=ADMIN)) as api:
        await api.new_run()

        async def outcome(token: str, call: str) -> str:
            channel = connect(api.address, token=token)
            runs, adapters = RunServiceStub(channel), AdapterAdminServiceStub(channel)
            try:
                if call == "get":
                    await runs.GetRun(get)
                elif call == "cancel":
                    await runs.CancelRun(cancel)
                elif call == "add":
                    await adapters.AddAdapter(add)
                elif call == "remove":
                    await adapters.RemoveAdapter(adapter_admin_pb2.RemoveAdapterRequest(port="blob"))
                elif call == "watch":
                    await anext(runs.WatchRun(run_pb2.WatchRunRequest(run_id="run-1")))
                else:
                    await adapters.ProbeAdapter(probe)
            except (UnauthenticatedError, PermissionDeniedError) as error:
                assert (token not in error.message) or not token
                return error.reason
            finally:
                await channel.close()
            return "OK"

        calls = ("get", "watch", "cancel", "probe", "add", "remove")
        assert [await outcome("", call) for call in calls] == ["TOKEN_MISSING"] * 6
        assert [await outcome("wrong-token-0123456789", call) for call in calls] == ["TOKEN_INVALID"] * 6
        assert [await outcome(READ + "x", call) for call in calls] == ["TOKEN_INVALID"] * 6
        assert [await outcome(READ, call) for call in calls] == ["OK"] * 2 + ["ROLE_MISSING"] * 4
        assert [await outcome(RUN, call) for call in calls] == ["OK"] * 3 + ["ROLE_MISSING"] * 3
        assert [await outcome(ADMIN, call) for call in calls] == ["OK"] * 6


async def test_other_schemes_are_no_token(tmp_path: Path) -> None:
    async with (
        serve(tmp_path, tokens=tokens(read=READ)) as api,
        open_channel(api.address) as raw,
    ):
        call = raw.unary_unary("/crucible.kitchen.v1.RunService/ListRuns")
        await call(b"", metadata=(("authorization", f"bearer {READ}"),))
        for header in (READ, f"Basic {READ}", "Bearer", f"Bearer {READ} {READ}"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", metadata=(("authorization", header),))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_health_is_open_and_reflection_and_channelz_are_not(tmp_path: Path) -> None:
    async with (
        serve(tmp_path, tokens=tokens(read=READ)) as api,
        open_channel(api.address) as raw,
    ):
        health: Any = health_pb2_grpc.HealthStub(raw)
        for service in ("", "crucible.kitchen.v1.RunService"):
            response = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        channelz = channelz_pb2_grpc.ChannelzStub(raw)
        bearer = (("authorization", f"Bearer {READ}"),)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask_reflection(api.address, request)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channelz.GetServers(channelz_pb2.GetServersRequest())
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await ask_reflection(api.address, request, metadata=bearer)
        assert (await channelz.GetServers(channelz_pb2.GetServersRequest(), metadata=bearer)).server
        await api.endpoint.drain()
        response = await health.Check(health_pb2.HealthCheckRequest(service="crucible.kitchen.v1.RunService"))
        assert response.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_the_services_of_grpc_itself_refuse_as_ours_do(api: Api) -> None:
    methods = sorted(each for each in await served_methods(api.address) if each.startswith("/grpc."))
    async with open_channel(api.address) as raw:
        for method in methods:
            call = raw.stream_stream(method)(iter([b"\x0b"]))  # a group that never ends
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in call:
                    pass
            missing = method == "/grpc.health.v1.Health/List"
            error = from_rpc_error(caught.value)
            assert error.reason == ("METHOD_MISSING" if missing else "MESSAGE_MALFORMED"), method
        health: Any = health_pb2_grpc.HealthStub(raw)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no token"),
        ("# only a comment\n", "holds no token"),
        (f"read {READ}", "line 1.*role: token"),
        (f"read: {READ}\nroot: {RUN}", "line 2.*read, run or admin"),
        ("read: short", "line 1.*at least 16"),
        (f"read: {READ} {READ}", "line 1.*no spaces"),
        (f"read: {READ}\n\nadmin: {READ}", "line 3.*earlier line"),
    ],
)
def test_bad_token_files_are_refused_without_showing_tokens(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        Tokens.read(path)
    assert caught.value.reason == "TOKENS_INVALID"
    assert READ not in caught.value.message and RUN not in caught.value.message


def test_a_token_file_others_can_read_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tokens"
    path.write_text(f'# who\n\nread: "{READ}"\nrun: {RUN}\n')
    path.chmod(0o600)
    with caplog.at_level(logging.WARNING):
        read = Tokens.read(path)
        assert not caplog.records
        path.chmod(0o644)
        Tokens.read(path)
    assert len(caplog.records) == 1 and "chmod 600" in caplog.text and READ not in caplog.text
    roles = [read.role(token) for token in (READ, RUN, ADMIN, "")]
    assert [role and role.name for role in roles] == ["READ", "RUN", None, None]


def test_a_missing_token_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot read"):
        Tokens.read(tmp_path / "missing")
