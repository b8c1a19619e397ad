import datetime

from crucible.type.v1 import failure_pb2 as _failure_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_CREATED: _ClassVar[RunState]
    RUN_STATE_QUEUED: _ClassVar[RunState]
    RUN_STATE_RUNNING: _ClassVar[RunState]
    RUN_STATE_PAUSED: _ClassVar[RunState]
    RUN_STATE_CANCELLING: _ClassVar[RunState]
    RUN_STATE_COMPLETED: _ClassVar[RunState]
    RUN_STATE_FAILED: _ClassVar[RunState]
    RUN_STATE_CANCELLED: _ClassVar[RunState]
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_CREATED: RunState
RUN_STATE_QUEUED: RunState
RUN_STATE_RUNNING: RunState
RUN_STATE_PAUSED: RunState
RUN_STATE_CANCELLING: RunState
RUN_STATE_COMPLETED: RunState
RUN_STATE_FAILED: RunState
RUN_STATE_CANCELLED: RunState

class RunEvent(_message.Message):
    __slots__ = ("sequence", "run_id", "recipe", "workflow", "dataset", "attempt", "stage_path", "step", "time", "state_changed", "attempt_started", "planned", "stage_started", "stage_completed", "stage_failed", "stage_rolled_back", "stage_skipped", "step_completed", "checkpoint_saved", "evaluation_completed", "model_registered", "log_recorded", "checkpoint_deleted", "summarized", "checkpoint_damaged")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STAGE_PATH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_STARTED_FIELD_NUMBER: _ClassVar[int]
    PLANNED_FIELD_NUMBER: _ClassVar[int]
    STAGE_STARTED_FIELD_NUMBER: _ClassVar[int]
    STAGE_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    STAGE_FAILED_FIELD_NUMBER: _ClassVar[int]
    STAGE_ROLLED_BACK_FIELD_NUMBER: _ClassVar[int]
    STAGE_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    STEP_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_SAVED_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    MODEL_REGISTERED_FIELD_NUMBER: _ClassVar[int]
    LOG_RECORDED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DELETED_FIELD_NUMBER: _ClassVar[int]
    SUMMARIZED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DAMAGED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    run_id: str
    recipe: str
    workflow: str
    dataset: str
    attempt: int
    stage_path: str
    step: int
    time: _timestamp_pb2.Timestamp
    state_changed: RunStateChanged
    attempt_started: AttemptStarted
    planned: RunPlanned
    stage_started: StageStarted
    stage_completed: StageCompleted
    stage_failed: StageFailed
    stage_rolled_back: StageRolledBack
    stage_skipped: StageSkipped
    step_completed: StepCompleted
    checkpoint_saved: CheckpointSaved
    evaluation_completed: EvaluationCompleted
    model_registered: ModelRegistered
    log_recorded: LogRecorded
    checkpoint_deleted: CheckpointDeleted
    summarized: RunSummarized
    checkpoint_damaged: CheckpointDamaged
    def __init__(self, sequence: _Optional[int] = ..., run_id: _Optional[str] = ..., recipe: _Optional[str] = ..., workflow: _Optional[str] = ..., dataset: _Optional[str] = ..., attempt: _Optional[int] = ..., stage_path: _Optional[str] = ..., step: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state_changed: _Optional[_Union[RunStateChanged, _Mapping]] = ..., attempt_started: _Optional[_Union[AttemptStarted, _Mapping]] = ..., planned: _Optional[_Union[RunPlanned, _Mapping]] = ..., stage_started: _Optional[_Union[StageStarted, _Mapping]] = ..., stage_completed: _Optional[_Union[StageCompleted, _Mapping]] = ..., stage_failed: _Optional[_Union[StageFailed, _Mapping]] = ..., stage_rolled_back: _Optional[_Union[StageRolledBack, _Mapping]] = ..., stage_skipped: _Optional[_Union[StageSkipped, _Mapping]] = ..., step_completed: _Optional[_Union[StepCompleted, _Mapping]] = ..., checkpoint_saved: _Optional[_Union[CheckpointSaved, _Mapping]] = ..., evaluation_completed: _Optional[_Union[EvaluationCompleted, _Mapping]] = ..., model_registered: _Optional[_Union[ModelRegistered, _Mapping]] = ..., log_recorded: _Optional[_Union[LogRecorded, _Mapping]] = ..., checkpoint_deleted: _Optional[_Union[CheckpointDeleted, _Mapping]] = ..., summarized: _Optional[_Union[RunSummarized, _Mapping]] = ..., checkpoint_damaged: _Optional[_Union[CheckpointDamaged, _Mapping]] = ...) -> None: ...

class RunStateChanged(_message.Message):
    __slots__ = ("from_state", "to_state", "reason", "failure", "waiting_for_port")
    FROM_STATE_FIELD_NUMBER: _ClassVar[int]
    TO_STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_PORT_FIELD_NUMBER: _ClassVar[int]
    from_state: RunState
    to_state: RunState
    reason: str
    failure: _failure_pb2.Failure
    waiting_for_port: str
    def __init__(self, from_state: _Optional[_Union[RunState, str]] = ..., to_state: _Optional[_Union[RunState, str]] = ..., reason: _Optional[str] = ..., failure: _Optional[_Union[_failure_pb2.Failure, _Mapping]] = ..., waiting_for_port: _Optional[str] = ...) -> None: ...

class AttemptStarted(_message.Message):
    __slots__ = ("attempt", "from_checkpoint", "superseded_first_sequence", "superseded_last_sequence")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FROM_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    from_checkpoint: Checkpoint
    superseded_first_sequence: int
    superseded_last_sequence: int
    def __init__(self, attempt: _Optional[int] = ..., from_checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., superseded_first_sequence: _Optional[int] = ..., superseded_last_sequence: _Optional[int] = ...) -> None: ...

class RunPlanned(_message.Message):
    __slots__ = ("total_steps", "steps_per_epoch", "num_rows", "trained_tokens_per_epoch", "dataset_fingerprint", "num_eval_rows")
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKENS_PER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    DATASET_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUM_EVAL_ROWS_FIELD_NUMBER: _ClassVar[int]
    total_steps: int
    steps_per_epoch: int
    num_rows: int
    trained_tokens_per_epoch: int
    dataset_fingerprint: str
    num_eval_rows: int
    def __init__(self, total_steps: _Optional[int] = ..., steps_per_epoch: _Optional[int] = ..., num_rows: _Optional[int] = ..., trained_tokens_per_epoch: _Optional[int] = ..., dataset_fingerprint: _Optional[str] = ..., num_eval_rows: _Optional[int] = ...) -> None: ...

class StageStarted(_message.Message):
    __slots__ = ("stage",)
    STAGE_FIELD_NUMBER: _ClassVar[int]
    stage: str
    def __init__(self, stage: _Optional[str] = ...) -> None: ...

class StageCompleted(_message.Message):
    __slots__ = ("stage", "seconds")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    seconds: float
    def __init__(self, stage: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class StageFailed(_message.Message):
    __slots__ = ("stage", "failure")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    stage: str
    failure: _failure_pb2.Failure
    def __init__(self, stage: _Optional[str] = ..., failure: _Optional[_Union[_failure_pb2.Failure, _Mapping]] = ...) -> None: ...

class StageRolledBack(_message.Message):
    __slots__ = ("stage", "failure")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    stage: str
    failure: _failure_pb2.Failure
    def __init__(self, stage: _Optional[str] = ..., failure: _Optional[_Union[_failure_pb2.Failure, _Mapping]] = ...) -> None: ...

class StageSkipped(_message.Message):
    __slots__ = ("stage", "reason")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    stage: str
    reason: str
    def __init__(self, stage: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class StepCompleted(_message.Message):
    __slots__ = ("metrics", "fraction")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    METRICS_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    metrics: _containers.ScalarMap[str, float]
    fraction: float
    def __init__(self, metrics: _Optional[_Mapping[str, float]] = ..., fraction: _Optional[float] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("uri", "step", "attempt", "manifest_sha256", "size_bytes", "final")
    URI_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    uri: str
    step: int
    attempt: int
    manifest_sha256: str
    size_bytes: int
    final: bool
    def __init__(self, uri: _Optional[str] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., manifest_sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., final: bool = ...) -> None: ...

class CheckpointSaved(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ...) -> None: ...

class CheckpointDeleted(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ...) -> None: ...

class CheckpointDamaged(_message.Message):
    __slots__ = ("checkpoint", "failure")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    failure: _failure_pb2.Failure
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., failure: _Optional[_Union[_failure_pb2.Failure, _Mapping]] = ...) -> None: ...

class EvaluationCompleted(_message.Message):
    __slots__ = ("metrics", "samples")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    metrics: _containers.ScalarMap[str, float]
    samples: _containers.RepeatedCompositeFieldContainer[EvaluationSample]
    def __init__(self, metrics: _Optional[_Mapping[str, float]] = ..., samples: _Optional[_Iterable[_Union[EvaluationSample, _Mapping]]] = ...) -> None: ...

class EvaluationSample(_message.Message):
    __slots__ = ("prompt", "target", "output")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    target: str
    output: str
    def __init__(self, prompt: _Optional[str] = ..., target: _Optional[str] = ..., output: _Optional[str] = ...) -> None: ...

class ModelRegistered(_message.Message):
    __slots__ = ("version_id", "model_name")
    VERSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    version_id: str
    model_name: str
    def __init__(self, version_id: _Optional[str] = ..., model_name: _Optional[str] = ...) -> None: ...

class RunSummarized(_message.Message):
    __slots__ = ("summary",)
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    summary: RunSummary
    def __init__(self, summary: _Optional[_Union[RunSummary, _Mapping]] = ...) -> None: ...

class RunSummary(_message.Message):
    __slots__ = ("steps", "trained_tokens", "input_tokens", "seconds", "tokens_per_second", "first_train_loss", "last_train_loss", "first_evaluation", "last_evaluation", "checkpoint_uri", "model_version_id")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    FIRST_TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    LAST_TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    FIRST_EVALUATION_FIELD_NUMBER: _ClassVar[int]
    LAST_EVALUATION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_URI_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_ID_FIELD_NUMBER: _ClassVar[int]
    steps: int
    trained_tokens: int
    input_tokens: int
    seconds: float
    tokens_per_second: float
    first_train_loss: float
    last_train_loss: float
    first_evaluation: EvaluationSummary
    last_evaluation: EvaluationSummary
    checkpoint_uri: str
    model_version_id: str
    def __init__(self, steps: _Optional[int] = ..., trained_tokens: _Optional[int] = ..., input_tokens: _Optional[int] = ..., seconds: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., first_train_loss: _Optional[float] = ..., last_train_loss: _Optional[float] = ..., first_evaluation: _Optional[_Union[EvaluationSummary, _Mapping]] = ..., last_evaluation: _Optional[_Union[EvaluationSummary, _Mapping]] = ..., checkpoint_uri: _Optional[str] = ..., model_version_id: _Optional[str] = ...) -> None: ...

class EvaluationSummary(_message.Message):
    __slots__ = ("step", "metrics", "sample")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    step: int
    metrics: _containers.ScalarMap[str, float]
    sample: EvaluationSample
    def __init__(self, step: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., sample: _Optional[_Union[EvaluationSample, _Mapping]] = ...) -> None: ...

class LogRecorded(_message.Message):
    __slots__ = ("severity", "message")
    class Severity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SEVERITY_UNSPECIFIED: _ClassVar[LogRecorded.Severity]
        SEVERITY_INFO: _ClassVar[LogRecorded.Severity]
        SEVERITY_WARNING: _ClassVar[LogRecorded.Severity]
    SEVERITY_UNSPECIFIED: LogRecorded.Severity
    SEVERITY_INFO: LogRecorded.Severity
    SEVERITY_WARNING: LogRecorded.Severity
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    severity: LogRecorded.Severity
    message: str
    def __init__(self, severity: _Optional[_Union[LogRecorded.Severity, str]] = ..., message: _Optional[str] = ...) -> None: ...
