from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from crucible.type.v1 import failure_pb2 as _failure_pb2
from crucible.type.v1 import message_pb2 as _message_pb2
from crucible.type.v1 import usage_pb2 as _usage_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReportFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPORT_FORMAT_UNSPECIFIED: _ClassVar[ReportFormat]
    REPORT_FORMAT_MARKDOWN: _ClassVar[ReportFormat]
    REPORT_FORMAT_JSON: _ClassVar[ReportFormat]
REPORT_FORMAT_UNSPECIFIED: ReportFormat
REPORT_FORMAT_MARKDOWN: ReportFormat
REPORT_FORMAT_JSON: ReportFormat

class ListTasksRequest(_message.Message):
    __slots__ = ("prefix", "page_size", "page_token")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    page_size: int
    page_token: str
    def __init__(self, prefix: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTasksResponse(_message.Message):
    __slots__ = ("tasks", "next_page_token")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    next_page_token: str
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("name", "description", "num_samples", "scorers", "options_schema")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SCORERS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    num_samples: int
    scorers: _containers.RepeatedScalarFieldContainer[str]
    options_schema: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., num_samples: _Optional[int] = ..., scorers: _Optional[_Iterable[str]] = ..., options_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class TaskSelection(_message.Message):
    __slots__ = ("name", "options")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    options: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class EvaluatedModel(_message.Message):
    __slots__ = ("name", "checkpoint_uri", "endpoint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_URI_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    checkpoint_uri: str
    endpoint: ModelEndpoint
    def __init__(self, name: _Optional[str] = ..., checkpoint_uri: _Optional[str] = ..., endpoint: _Optional[_Union[ModelEndpoint, _Mapping]] = ...) -> None: ...

class ModelEndpoint(_message.Message):
    __slots__ = ("uri", "model", "api_key")
    URI_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    uri: str
    model: str
    api_key: str
    def __init__(self, uri: _Optional[str] = ..., model: _Optional[str] = ..., api_key: _Optional[str] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("tasks", "model", "limit", "seed", "max_tokens", "temperature")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[TaskSelection]
    model: EvaluatedModel
    limit: int
    seed: int
    max_tokens: int
    temperature: float
    def __init__(self, tasks: _Optional[_Iterable[_Union[TaskSelection, _Mapping]]] = ..., model: _Optional[_Union[EvaluatedModel, _Mapping]] = ..., limit: _Optional[int] = ..., seed: _Optional[int] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ...) -> None: ...

class EvaluateResponse(_message.Message):
    __slots__ = ("started", "sample", "summary")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    started: EvaluationStarted
    sample: EvaluationSample
    summary: EvaluationSummary
    def __init__(self, started: _Optional[_Union[EvaluationStarted, _Mapping]] = ..., sample: _Optional[_Union[EvaluationSample, _Mapping]] = ..., summary: _Optional[_Union[EvaluationSummary, _Mapping]] = ...) -> None: ...

class EvaluationStarted(_message.Message):
    __slots__ = ("evaluation_id", "num_samples")
    EVALUATION_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    evaluation_id: str
    num_samples: int
    def __init__(self, evaluation_id: _Optional[str] = ..., num_samples: _Optional[int] = ...) -> None: ...

class EvaluationSample(_message.Message):
    __slots__ = ("task", "id", "input", "target", "output", "scores", "error", "metadata")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Score
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Score, _Mapping]] = ...) -> None: ...
    TASK_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    task: str
    id: str
    input: _containers.RepeatedCompositeFieldContainer[_message_pb2.Message]
    target: _containers.RepeatedScalarFieldContainer[str]
    output: str
    scores: _containers.MessageMap[str, Score]
    error: _failure_pb2.Failure
    metadata: _struct_pb2.Struct
    def __init__(self, task: _Optional[str] = ..., id: _Optional[str] = ..., input: _Optional[_Iterable[_Union[_message_pb2.Message, _Mapping]]] = ..., target: _Optional[_Iterable[str]] = ..., output: _Optional[str] = ..., scores: _Optional[_Mapping[str, Score]] = ..., error: _Optional[_Union[_failure_pb2.Failure, _Mapping]] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("value", "answer", "explanation")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    value: float
    answer: str
    explanation: str
    def __init__(self, value: _Optional[float] = ..., answer: _Optional[str] = ..., explanation: _Optional[str] = ...) -> None: ...

class EvaluationSummary(_message.Message):
    __slots__ = ("evaluation_id", "aggregates", "num_errors", "usage", "cost")
    EVALUATION_ID_FIELD_NUMBER: _ClassVar[int]
    AGGREGATES_FIELD_NUMBER: _ClassVar[int]
    NUM_ERRORS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    evaluation_id: str
    aggregates: _containers.RepeatedCompositeFieldContainer[Aggregate]
    num_errors: int
    usage: _usage_pb2.TokenUsage
    cost: _usage_pb2.Cost
    def __init__(self, evaluation_id: _Optional[str] = ..., aggregates: _Optional[_Iterable[_Union[Aggregate, _Mapping]]] = ..., num_errors: _Optional[int] = ..., usage: _Optional[_Union[_usage_pb2.TokenUsage, _Mapping]] = ..., cost: _Optional[_Union[_usage_pb2.Cost, _Mapping]] = ...) -> None: ...

class Aggregate(_message.Message):
    __slots__ = ("task", "scorer", "mean", "stderr", "std", "min", "max", "median", "count")
    TASK_FIELD_NUMBER: _ClassVar[int]
    SCORER_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    task: str
    scorer: str
    mean: float
    stderr: float
    std: float
    min: float
    max: float
    median: float
    count: int
    def __init__(self, task: _Optional[str] = ..., scorer: _Optional[str] = ..., mean: _Optional[float] = ..., stderr: _Optional[float] = ..., std: _Optional[float] = ..., min: _Optional[float] = ..., max: _Optional[float] = ..., median: _Optional[float] = ..., count: _Optional[int] = ...) -> None: ...

class GenerateReportRequest(_message.Message):
    __slots__ = ("evaluation_id", "format")
    EVALUATION_ID_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    evaluation_id: str
    format: ReportFormat
    def __init__(self, evaluation_id: _Optional[str] = ..., format: _Optional[_Union[ReportFormat, str]] = ...) -> None: ...

class GenerateReportResponse(_message.Message):
    __slots__ = ("report", "media_type")
    REPORT_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    report: str
    media_type: str
    def __init__(self, report: _Optional[str] = ..., media_type: _Optional[str] = ...) -> None: ...
