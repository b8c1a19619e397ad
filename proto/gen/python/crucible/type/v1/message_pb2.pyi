from crucible.type.v1 import constraints_pb2 as _constraints_pb2
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
    __slots__ = ("role", "content", "name", "trainable")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    name: str
    trainable: bool
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ..., name: _Optional[str] = ..., trainable: bool = ...) -> None: ...

class Conversation(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...
