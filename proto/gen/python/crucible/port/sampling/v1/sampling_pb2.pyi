import datetime

from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from crucible.type.v1 import operation_pb2 as _operation_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StopReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STOP_REASON_UNSPECIFIED: _ClassVar[StopReason]
    STOP_REASON_STOP: _ClassVar[StopReason]
    STOP_REASON_LENGTH: _ClassVar[StopReason]
    STOP_REASON_ABORTED: _ClassVar[StopReason]
STOP_REASON_UNSPECIFIED: StopReason
STOP_REASON_STOP: StopReason
STOP_REASON_LENGTH: StopReason
STOP_REASON_ABORTED: StopReason

class CreateSamplingSessionRequest(_message.Message):
    __slots__ = ("request_id", "base_model", "checkpoint_uri", "training_session_id", "checkpoint_base_model")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_URI_FIELD_NUMBER: _ClassVar[int]
    TRAINING_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    base_model: str
    checkpoint_uri: str
    training_session_id: str
    checkpoint_base_model: str
    def __init__(self, request_id: _Optional[str] = ..., base_model: _Optional[str] = ..., checkpoint_uri: _Optional[str] = ..., training_session_id: _Optional[str] = ..., checkpoint_base_model: _Optional[str] = ...) -> None: ...

class CreateSamplingSessionResponse(_message.Message):
    __slots__ = ("session_id", "vocab_size", "max_sequence_tokens", "lease")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    vocab_size: int
    max_sequence_tokens: int
    lease: _duration_pb2.Duration
    def __init__(self, session_id: _Optional[str] = ..., vocab_size: _Optional[int] = ..., max_sequence_tokens: _Optional[int] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop_tokens")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop_tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., stop_tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("session_id", "sequence", "prompt_tokens_int32", "params", "num_samples", "prompt_logprobs")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_INT32_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    sequence: int
    prompt_tokens_int32: bytes
    params: SamplingParams
    num_samples: int
    prompt_logprobs: bool
    def __init__(self, session_id: _Optional[str] = ..., sequence: _Optional[int] = ..., prompt_tokens_int32: _Optional[bytes] = ..., params: _Optional[_Union[SamplingParams, _Mapping]] = ..., num_samples: _Optional[int] = ..., prompt_logprobs: bool = ...) -> None: ...

class SampleResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_pb2.Operation, _Mapping]] = ...) -> None: ...

class SampledSequence(_message.Message):
    __slots__ = ("tokens_int32", "logprobs_float32", "stop_reason")
    TOKENS_INT32_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FLOAT32_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    tokens_int32: bytes
    logprobs_float32: bytes
    stop_reason: StopReason
    def __init__(self, tokens_int32: _Optional[bytes] = ..., logprobs_float32: _Optional[bytes] = ..., stop_reason: _Optional[_Union[StopReason, str]] = ...) -> None: ...

class SampleResult(_message.Message):
    __slots__ = ("sequences", "prompt_logprobs_float32", "weights_version")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FLOAT32_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.RepeatedCompositeFieldContainer[SampledSequence]
    prompt_logprobs_float32: bytes
    weights_version: int
    def __init__(self, sequences: _Optional[_Iterable[_Union[SampledSequence, _Mapping]]] = ..., prompt_logprobs_float32: _Optional[bytes] = ..., weights_version: _Optional[int] = ...) -> None: ...

class StreamSampleRequest(_message.Message):
    __slots__ = ("session_id", "prompt_tokens_int32", "params", "num_samples")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_INT32_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    prompt_tokens_int32: bytes
    params: SamplingParams
    num_samples: int
    def __init__(self, session_id: _Optional[str] = ..., prompt_tokens_int32: _Optional[bytes] = ..., params: _Optional[_Union[SamplingParams, _Mapping]] = ..., num_samples: _Optional[int] = ...) -> None: ...

class StreamSampleResponse(_message.Message):
    __slots__ = ("index", "tokens_int32", "logprobs_float32", "stop_reason")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKENS_INT32_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FLOAT32_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    index: int
    tokens_int32: bytes
    logprobs_float32: bytes
    stop_reason: StopReason
    def __init__(self, index: _Optional[int] = ..., tokens_int32: _Optional[bytes] = ..., logprobs_float32: _Optional[bytes] = ..., stop_reason: _Optional[_Union[StopReason, str]] = ...) -> None: ...

class ComputeLogprobsRequest(_message.Message):
    __slots__ = ("session_id", "sequence", "tokens_int32")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_INT32_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    sequence: int
    tokens_int32: bytes
    def __init__(self, session_id: _Optional[str] = ..., sequence: _Optional[int] = ..., tokens_int32: _Optional[bytes] = ...) -> None: ...

class ComputeLogprobsResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_pb2.Operation, _Mapping]] = ...) -> None: ...

class LogprobsResult(_message.Message):
    __slots__ = ("logprobs_float32", "weights_version")
    LOGPROBS_FLOAT32_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    logprobs_float32: bytes
    weights_version: int
    def __init__(self, logprobs_float32: _Optional[bytes] = ..., weights_version: _Optional[int] = ...) -> None: ...

class AwaitOperationRequest(_message.Message):
    __slots__ = ("session_id", "operation_id", "wait")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    operation_id: str
    wait: _duration_pb2.Duration
    def __init__(self, session_id: _Optional[str] = ..., operation_id: _Optional[str] = ..., wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class AwaitOperationResponse(_message.Message):
    __slots__ = ("operation", "sample", "logprobs")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_pb2.Operation
    sample: SampleResult
    logprobs: LogprobsResult
    def __init__(self, operation: _Optional[_Union[_operation_pb2.Operation, _Mapping]] = ..., sample: _Optional[_Union[SampleResult, _Mapping]] = ..., logprobs: _Optional[_Union[LogprobsResult, _Mapping]] = ...) -> None: ...

class CancelOperationRequest(_message.Message):
    __slots__ = ("session_id", "operation_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    operation_id: str
    def __init__(self, session_id: _Optional[str] = ..., operation_id: _Optional[str] = ...) -> None: ...

class CancelOperationResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_pb2.Operation, _Mapping]] = ...) -> None: ...

class CloseSamplingSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class CloseSamplingSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
