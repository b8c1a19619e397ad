from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from crucible.type.v1 import message_pb2 as _message_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ComparisonLabel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPARISON_LABEL_UNSPECIFIED: _ClassVar[ComparisonLabel]
    COMPARISON_LABEL_A: _ClassVar[ComparisonLabel]
    COMPARISON_LABEL_B: _ClassVar[ComparisonLabel]
    COMPARISON_LABEL_TIE: _ClassVar[ComparisonLabel]
COMPARISON_LABEL_UNSPECIFIED: ComparisonLabel
COMPARISON_LABEL_A: ComparisonLabel
COMPARISON_LABEL_B: ComparisonLabel
COMPARISON_LABEL_TIE: ComparisonLabel

class Comparison(_message.Message):
    __slots__ = ("prompt_conversation", "completion_a", "completion_b")
    PROMPT_CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_A_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_B_FIELD_NUMBER: _ClassVar[int]
    prompt_conversation: _containers.RepeatedCompositeFieldContainer[_message_pb2.Message]
    completion_a: _containers.RepeatedCompositeFieldContainer[_message_pb2.Message]
    completion_b: _containers.RepeatedCompositeFieldContainer[_message_pb2.Message]
    def __init__(self, prompt_conversation: _Optional[_Iterable[_Union[_message_pb2.Message, _Mapping]]] = ..., completion_a: _Optional[_Iterable[_Union[_message_pb2.Message, _Mapping]]] = ..., completion_b: _Optional[_Iterable[_Union[_message_pb2.Message, _Mapping]]] = ...) -> None: ...

class LabeledComparison(_message.Message):
    __slots__ = ("comparison", "label")
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    comparison: Comparison
    label: ComparisonLabel
    def __init__(self, comparison: _Optional[_Union[Comparison, _Mapping]] = ..., label: _Optional[_Union[ComparisonLabel, str]] = ...) -> None: ...
