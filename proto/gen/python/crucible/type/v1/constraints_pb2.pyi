from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor
FIELD_FIELD_NUMBER: _ClassVar[int]
field: _descriptor.FieldDescriptor

class FieldConstraints(_message.Message):
    __slots__ = ("required", "secret", "max_len", "max_items", "min", "max", "pattern", "format")
    class Format(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FORMAT_UNSPECIFIED: _ClassVar[FieldConstraints.Format]
        FORMAT_IDENTIFIER: _ClassVar[FieldConstraints.Format]
        FORMAT_UUID: _ClassVar[FieldConstraints.Format]
        FORMAT_SHA256: _ClassVar[FieldConstraints.Format]
        FORMAT_URI: _ClassVar[FieldConstraints.Format]
    FORMAT_UNSPECIFIED: FieldConstraints.Format
    FORMAT_IDENTIFIER: FieldConstraints.Format
    FORMAT_UUID: FieldConstraints.Format
    FORMAT_SHA256: FieldConstraints.Format
    FORMAT_URI: FieldConstraints.Format
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    MAX_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    required: bool
    secret: bool
    max_len: int
    max_items: int
    min: float
    max: float
    pattern: str
    format: FieldConstraints.Format
    def __init__(self, required: bool = ..., secret: bool = ..., max_len: _Optional[int] = ..., max_items: _Optional[int] = ..., min: _Optional[float] = ..., max: _Optional[float] = ..., pattern: _Optional[str] = ..., format: _Optional[_Union[FieldConstraints.Format, str]] = ...) -> None: ...
