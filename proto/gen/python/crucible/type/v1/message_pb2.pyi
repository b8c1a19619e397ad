from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from crucible.type.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrainOn(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAIN_ON_UNSPECIFIED: _ClassVar[TrainOn]
    TRAIN_ON_LAST_ASSISTANT_MESSAGE: _ClassVar[TrainOn]
    TRAIN_ON_ALL_ASSISTANT_MESSAGES: _ClassVar[TrainOn]
    TRAIN_ON_ALL_MESSAGES: _ClassVar[TrainOn]
    TRAIN_ON_ALL_TOKENS: _ClassVar[TrainOn]
    TRAIN_ON_ALL_USER_AND_SYSTEM_MESSAGES: _ClassVar[TrainOn]
    TRAIN_ON_CUSTOMIZED: _ClassVar[TrainOn]
TRAIN_ON_UNSPECIFIED: TrainOn
TRAIN_ON_LAST_ASSISTANT_MESSAGE: TrainOn
TRAIN_ON_ALL_ASSISTANT_MESSAGES: TrainOn
TRAIN_ON_ALL_MESSAGES: TrainOn
TRAIN_ON_ALL_TOKENS: TrainOn
TRAIN_ON_ALL_USER_AND_SYSTEM_MESSAGES: TrainOn
TRAIN_ON_CUSTOMIZED: TrainOn

class Message(_message.Message):
    __slots__ = ("role", "content", "name", "trainable", "tool_calls", "thinking", "parts", "tool_call_id", "thinking_signature")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    THINKING_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    name: str
    trainable: bool
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCall]
    thinking: str
    parts: _containers.RepeatedCompositeFieldContainer[ContentPart]
    tool_call_id: str
    thinking_signature: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ..., name: _Optional[str] = ..., trainable: bool = ..., tool_calls: _Optional[_Iterable[_Union[ToolCall, _Mapping]]] = ..., thinking: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[ContentPart, _Mapping]]] = ..., tool_call_id: _Optional[str] = ..., thinking_signature: _Optional[str] = ...) -> None: ...

class ToolCall(_message.Message):
    __slots__ = ("id", "name", "arguments_json", "signature")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    arguments_json: str
    signature: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., arguments_json: _Optional[str] = ..., signature: _Optional[str] = ...) -> None: ...

class ContentPart(_message.Message):
    __slots__ = ("text", "media")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    text: str
    media: Media
    def __init__(self, text: _Optional[str] = ..., media: _Optional[_Union[Media, _Mapping]] = ...) -> None: ...

class Media(_message.Message):
    __slots__ = ("media_type", "data", "uri", "blob")
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    media_type: str
    data: bytes
    uri: str
    blob: _tensor_pb2.BlobRef
    def __init__(self, media_type: _Optional[str] = ..., data: _Optional[bytes] = ..., uri: _Optional[str] = ..., blob: _Optional[_Union[_tensor_pb2.BlobRef, _Mapping]] = ...) -> None: ...

class Conversation(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...
