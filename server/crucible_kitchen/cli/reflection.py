"""Descriptors of a server's services, fetched through gRPC server reflection."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2

from crucible_kit.errors import KitchenError, NotFoundError, UnimplementedError, field_error, from_rpc_error
from crucible_kit.settings import unknown_key

# Newest first; their messages are the same.
_VERSIONS = ("v1", "v1alpha")


class ServerReflection:
    """What a server says about itself. Files are fetched once, with all that they import.

    Attributes:
        pool: the descriptors that were fetched.
    """

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._channel = channel
        self._metadata = metadata
        self._version: str | None = None
        self._files: set[str] = set()
        self.pool = descriptor_pool.DescriptorPool()

    async def services(self) -> list[str]:
        """Full names of the services, sorted."""
        answer = await self._ask(reflection_pb2.ServerReflectionRequest(list_services=""))
        return sorted(each.name for each in answer.list_services_response.service)

    async def find_method(self, name: str) -> MethodDescriptor:
        """The method package.Service/Method, package.Service.Method, or Service/Method where that is unambiguous.

        Raises:
            InvalidArgumentError: METHOD_NAME_INVALID.
            NotFoundError: SERVICE_NOT_FOUND, METHOD_NOT_FOUND with the nearest name.
        """
        path = name.strip("/")
        service, _, method = path.rpartition("/") if "/" in path else path.rpartition(".")
        if not service or not method:
            problem = f"{name!r} must be package.Service/Method, such as crucible.kitchen.v1.RunService/GetRun"
            raise field_error("method", problem, reason="METHOD_NAME_INVALID")
        service = await self._full_name(service)
        await self.load_symbol(service)
        found = self.pool.FindServiceByName(service)
        if method not in found.methods_by_name:
            problem = unknown_key(method, found.methods_by_name).removeprefix("unknown key; ")
            problem = problem.replace("the keys are", "its methods are")
            raise NotFoundError(f"{service} has no method {method}: {problem}", reason="METHOD_NOT_FOUND")
        return found.methods_by_name[method]

    async def _full_name(self, service: str) -> str:
        known = await self.services()
        if service in known:
            return service
        ending = [each for each in known if each.endswith(f".{service}")]
        if len(ending) == 1:
            return ending[0]
        raise NotFoundError(
            f"the server has no service {service}; it has {', '.join(known)}", reason="SERVICE_NOT_FOUND"
        )

    async def load_symbol(self, symbol: str) -> None:
        """Fetches the file that defines a symbol. Raises NOT_FOUND SYMBOL_NOT_FOUND."""
        answer = await self._ask(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
        if answer.HasField("error_response"):
            raise NotFoundError(f"the server knows no symbol {symbol}", reason="SYMBOL_NOT_FOUND")
        await self._add(answer)

    async def load_any_types(self, message: Message) -> None:
        """Fetches the types of all google.protobuf.Any inside a message, so that it can be printed."""
        for field, value in message.ListFields():
            if field.message_type is None:
                continue
            if field.message_type.GetOptions().map_entry:
                nested = field.message_type.fields_by_name["value"].message_type is not None
                children: Any = value.values() if nested else ()
            else:
                children = value if field.is_repeated else (value,)
            for child in children:
                if child.DESCRIPTOR.full_name == "google.protobuf.Any":
                    await self.load_symbol(child.type_url.rpartition("/")[2])
                else:
                    await self.load_any_types(child)

    async def _add(self, answer: reflection_pb2.ServerReflectionResponse) -> None:
        """Adds files to the pool, what they import first."""
        given = [
            descriptor_pb2.FileDescriptorProto.FromString(each)
            for each in answer.file_descriptor_response.file_descriptor_proto
        ]
        files = {each.name: each for each in given}
        for each in given:
            await self._add_file(each, files)

    async def _add_file(self, file: Any, files: dict[str, Any]) -> None:
        if file.name in self._files:
            return
        self._files.add(file.name)
        for name in file.dependency:
            if name in self._files:
                continue
            if name not in files:
                answer = await self._ask(reflection_pb2.ServerReflectionRequest(file_by_filename=name))
                await self._add(answer)
            else:
                await self._add_file(files[name], files)
        self.pool.Add(file)

    async def _ask(self, request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        versions = _VERSIONS if self._version is None else (self._version,)
        failure: KitchenError | None = None
        for version in versions:
            talk: Any = self._channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            try:
                async for answer in talk(iter([request]), metadata=self._metadata, timeout=30):
                    self._version = version
                    return answer
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(error)
                if not isinstance(failure, UnimplementedError):
                    raise failure from error
        raise UnimplementedError(
            "the server has no reflection service, so its methods can't be known: use a client with its protos",
            reason="REFLECTION_MISSING",
        ) from failure
