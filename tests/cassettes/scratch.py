"""A port made for these tests: one method of each shape over a message with every kind of field."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, struct_pb2, timestamp_pb2

from crucible.type.v1 import constraints_pb2, operation_pb2
from crucible_kit.errors import InvalidArgumentError, NotFoundError
from crucible_kit.ports import Port

Field = descriptor_pb2.FieldDescriptorProto
PACKAGE = "crucible.scratch.cassettes.v1"
SERVICE = f"{PACKAGE}.TalkService"


def _field(message: Any, name: str, kind: int, *, repeated: bool = False, of: str = "", **rule: Any) -> Any:
    label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=len(message.field) + 1, type=kind, label=label)
    if of:
        field.type_name = f".{of}"
    if rule:
        field.options.Extensions[constraints_pb2.field].CopyFrom(constraints_pb2.FieldConstraints(**rule))
    return field


def _map(message: Any, name: str, key: int, value: int, *, of: str = "", **rule: Any) -> None:
    entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
    entry.options.map_entry = True
    _field(entry, "key", key)
    _field(entry, "value", value, of=of)
    _field(message, name, Field.TYPE_MESSAGE, repeated=True, of=f"{PACKAGE}.{message.name}.{entry.name}", **rule)


def _build() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="crucible/scratch/cassettes/v1/talk.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=[
            "crucible/type/v1/constraints.proto",
            "crucible/type/v1/operation.proto",
            any_pb2.DESCRIPTOR.name,
            struct_pb2.DESCRIPTOR.name,
            timestamp_pb2.DESCRIPTOR.name,
            "google/protobuf/duration.proto",
        ],
    )
    mood = file.enum_type.add(name="Mood")
    mood.value.add(name="MOOD_UNSPECIFIED", number=0)
    mood.value.add(name="MOOD_GLAD", number=1)
    note = file.message_type.add(name="Note")
    own = f"{PACKAGE}.Note"
    _field(note, "text", Field.TYPE_STRING)
    _field(note, "number", Field.TYPE_INT64)
    _field(note, "data", Field.TYPE_BYTES)
    _field(note, "ratio", Field.TYPE_DOUBLE)
    _field(note, "small", Field.TYPE_FLOAT)
    _field(note, "session_id", Field.TYPE_STRING)
    _field(note, "request_id", Field.TYPE_STRING, format=constraints_pb2.FieldConstraints.FORMAT_UUID)
    _field(note, "password", Field.TYPE_STRING, secret=True)
    _map(note, "passwords", Field.TYPE_STRING, Field.TYPE_STRING, secret=True)
    _field(note, "tags", Field.TYPE_STRING, repeated=True)
    _map(note, "labels", Field.TYPE_STRING, Field.TYPE_STRING)
    _map(note, "notes", Field.TYPE_STRING, Field.TYPE_MESSAGE, of=own)
    _field(note, "child", Field.TYPE_MESSAGE, of=own)
    _field(note, "children", Field.TYPE_MESSAGE, repeated=True, of=own)
    _field(note, "packed", Field.TYPE_MESSAGE, of="google.protobuf.Any")
    _field(note, "settings", Field.TYPE_MESSAGE, of="google.protobuf.Struct")
    _field(note, "start_time", Field.TYPE_MESSAGE, of="google.protobuf.Timestamp")
    _field(note, "mood", Field.TYPE_ENUM, of=f"{PACKAGE}.Mood")
    flag = _field(note, "flag", Field.TYPE_BOOL)
    flag.proto3_optional = True
    flag.oneof_index = 0
    note.oneof_decl.add(name="_flag")
    _field(note, "pieces", Field.TYPE_BYTES, repeated=True)
    _map(note, "by_number", Field.TYPE_INT32, Field.TYPE_BYTES)
    _field(note, "logprobs_float32", Field.TYPE_BYTES)
    _field(note, "sequence", Field.TYPE_UINT64)
    _field(note, "secret_data", Field.TYPE_BYTES, secret=True)
    _field(note, "operation", Field.TYPE_MESSAGE, of="crucible.type.v1.Operation")
    poll = file.message_type.add(name="PollRequest")
    _field(poll, "session_id", Field.TYPE_STRING)
    _field(poll, "operation_id", Field.TYPE_STRING)
    _field(poll, "wait", Field.TYPE_MESSAGE, of="google.protobuf.Duration")
    service = file.service.add(name="TalkService")
    for name, client, server in (
        ("Ask", False, False),
        ("Listen", False, True),
        ("Tell", True, False),
        ("Chat", True, True),
    ):
        service.method.add(
            name=name,
            input_type=f".{own}",
            output_type=f".{own}",
            client_streaming=client,
            server_streaming=server,
        )
    service.method.add(name="AwaitOperation", input_type=f".{PACKAGE}.PollRequest", output_type=f".{own}")
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName(file.name)


_FILE = _build()
Note: Any = message_factory.GetMessageClass(_FILE.message_types_by_name["Note"])
PollRequest: Any = message_factory.GetMessageClass(_FILE.message_types_by_name["PollRequest"])


class TalkStub:
    """As a generated stub."""

    def __init__(self, channel: Any) -> None:
        for method in _FILE.services_by_name["TalkService"].methods:
            shape = (
                f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
            )
            call = getattr(channel, shape)(
                f"/{SERVICE}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, call)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Talk:
    """A servicer whose requests say what it does.

    Attributes:
        hung: set when a call hangs.
        sessions: how many were opened.
        polls: how many times an operation must be asked for until it has finished.
        ids: what the names of sessions and operations begin with.
    """

    def __init__(self, *, ids: str = "0123456789abcdef", polls: int = 1, factor: float = 1.0) -> None:
        self.hung = asyncio.Event()
        self.sessions = 0
        self.polls = polls
        self.asked: dict[str, int] = {}
        self._ids = ids
        self._factor = factor

    async def _act(self, note: Any) -> None:
        match note.text:
            case "missing":
                raise NotFoundError(
                    f"there is no note of {note.session_id or 'anybody'}",
                    reason="NOTE_NOT_FOUND",
                    metadata={"password": note.password, "session": note.session_id},
                )
            case "bad":
                raise InvalidArgumentError("text: is bad", reason="FIELD_INVALID")
            case "hang":
                self.hung.set()
                await asyncio.Event().wait()

    async def Ask(self, note: Any, context: Any) -> Any:
        """Opens a session for `open`, enqueues for `work`, otherwise says the text again with the ratio."""
        await self._act(note)
        if note.text == "open":
            self.sessions += 1
            return Note(session_id=f"{self._ids}-session-{self.sessions}")
        if note.text == "work":
            identifier = f"{self._ids}-operation-{note.sequence}"
            self.asked.setdefault(identifier, 0)
            return Note(operation=operation_pb2.Operation(id=identifier, state=operation_pb2.OPERATION_STATE_QUEUED))
        answer = Note(text=f"{note.text}!", ratio=note.ratio * self._factor, session_id=note.session_id)
        answer.logprobs_float32 = note.logprobs_float32
        return answer

    async def AwaitOperation(self, request: Any, context: Any) -> Any:
        """Finishes when it is asked often enough."""
        if request.operation_id not in self.asked:
            raise NotFoundError("no such operation", reason="OPERATION_NOT_FOUND")
        self.asked[request.operation_id] += 1
        finished = self.asked[request.operation_id] >= self.polls
        state = operation_pb2.OPERATION_STATE_SUCCEEDED if finished else operation_pb2.OPERATION_STATE_RUNNING
        return Note(
            operation=operation_pb2.Operation(id=request.operation_id, state=state), ratio=0.5 * self._factor * finished
        )

    async def Listen(self, note: Any, context: Any) -> AsyncIterator[Any]:
        """`number` answers, then what the text says."""
        for index in range(note.number):
            yield Note(number=index, data=bytes([index]) * 300)
        await self._act(note)

    async def Tell(self, notes: AsyncIterator[Any], context: Any) -> Any:
        """All texts."""
        texts = []
        async for note in notes:
            await self._act(note)
            texts.append(note.text)
        return Note(text=" ".join(texts), number=len(texts))

    async def Chat(self, notes: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """An answer to each, before the next is read."""
        count = 0
        async for note in notes:
            await self._act(note)
            count += 1
            yield Note(text=f"{note.text}?", number=count)
        yield Note(text="bye")

    async def close(self) -> None:
        """Nothing to free."""


def _register(servicer: Any, server: Any) -> None:
    handlers = {}
    for method in _FILE.services_by_name["TalkService"].methods:
        shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        make = getattr(grpc, f"{shape}_rpc_method_handler")
        handlers[method.name] = make(
            getattr(servicer, method.name),
            request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


PORT = Port(
    name="talk",
    service=_FILE.services_by_name["TalkService"],
    stub=TalkStub,
    servicer=SimpleNamespace,
    register=_register,
)
