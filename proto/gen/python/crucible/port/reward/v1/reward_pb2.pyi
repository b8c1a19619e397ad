import datetime

from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from crucible.type.v1 import failure_pb2 as _failure_pb2
from crucible.type.v1 import message_pb2 as _message_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_CORRECT: _ClassVar[Outcome]
    OUTCOME_WRONG: _ClassVar[Outcome]
    OUTCOME_UNPARSEABLE: _ClassVar[Outcome]
    OUTCOME_TIMED_OUT: _ClassVar[Outcome]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_CORRECT: Outcome
OUTCOME_WRONG: Outcome
OUTCOME_UNPARSEABLE: Outcome
OUTCOME_TIMED_OUT: Outcome

class ScoreItem(_message.Message):
    __slots__ = ("prompt", "completion", "reference_answer", "metadata")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_ANSWER_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    prompt: _containers.RepeatedCompositeFieldContainer[_message_pb2.Message]
    completion: _containers.RepeatedCompositeFieldContainer[_message_pb2.Message]
    reference_answer: str
    metadata: _struct_pb2.Struct
    def __init__(self, prompt: _Optional[_Iterable[_Union[_message_pb2.Message, _Mapping]]] = ..., completion: _Optional[_Iterable[_Union[_message_pb2.Message, _Mapping]]] = ..., reference_answer: _Optional[str] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("reward", "items", "options", "item_timeout")
    REWARD_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ITEM_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    reward: str
    items: _containers.RepeatedCompositeFieldContainer[ScoreItem]
    options: _struct_pb2.Struct
    item_timeout: _duration_pb2.Duration
    def __init__(self, reward: _Optional[str] = ..., items: _Optional[_Iterable[_Union[ScoreItem, _Mapping]]] = ..., options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., item_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ScoreResult]
    def __init__(self, results: _Optional[_Iterable[_Union[ScoreResult, _Mapping]]] = ...) -> None: ...

class ScoreResult(_message.Message):
    __slots__ = ("reward", "parts", "outcome", "answer", "explanation", "error")
    class PartsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    REWARD_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    reward: float
    parts: _containers.ScalarMap[str, float]
    outcome: Outcome
    answer: str
    explanation: str
    error: _failure_pb2.Failure
    def __init__(self, reward: _Optional[float] = ..., parts: _Optional[_Mapping[str, float]] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., answer: _Optional[str] = ..., explanation: _Optional[str] = ..., error: _Optional[_Union[_failure_pb2.Failure, _Mapping]] = ...) -> None: ...

class ListRewardsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRewardsResponse(_message.Message):
    __slots__ = ("rewards", "next_page_token")
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    rewards: _containers.RepeatedCompositeFieldContainer[Reward]
    next_page_token: str
    def __init__(self, rewards: _Optional[_Iterable[_Union[Reward, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Reward(_message.Message):
    __slots__ = ("name", "description", "min_reward", "max_reward", "parts", "needs_reference_answer", "options_schema")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    MIN_REWARD_FIELD_NUMBER: _ClassVar[int]
    MAX_REWARD_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    NEEDS_REFERENCE_ANSWER_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    min_reward: float
    max_reward: float
    parts: _containers.RepeatedScalarFieldContainer[str]
    needs_reference_answer: bool
    options_schema: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., min_reward: _Optional[float] = ..., max_reward: _Optional[float] = ..., parts: _Optional[_Iterable[str]] = ..., needs_reference_answer: bool = ..., options_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...
