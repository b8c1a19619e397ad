import datetime

from crucible.type.v1 import comparison_pb2 as _comparison_pb2
from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from crucible.type.v1 import message_pb2 as _message_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SignalKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIGNAL_KIND_UNSPECIFIED: _ClassVar[SignalKind]
    SIGNAL_KIND_THUMBS_UP: _ClassVar[SignalKind]
    SIGNAL_KIND_THUMBS_DOWN: _ClassVar[SignalKind]
    SIGNAL_KIND_RATING: _ClassVar[SignalKind]
    SIGNAL_KIND_CORRECTION: _ClassVar[SignalKind]
    SIGNAL_KIND_RETRY: _ClassVar[SignalKind]
    SIGNAL_KIND_FLAG: _ClassVar[SignalKind]

class DriftState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DRIFT_STATE_UNSPECIFIED: _ClassVar[DriftState]
    DRIFT_STATE_STABLE: _ClassVar[DriftState]
    DRIFT_STATE_DRIFTED: _ClassVar[DriftState]
    DRIFT_STATE_TOO_LITTLE_DATA: _ClassVar[DriftState]
SIGNAL_KIND_UNSPECIFIED: SignalKind
SIGNAL_KIND_THUMBS_UP: SignalKind
SIGNAL_KIND_THUMBS_DOWN: SignalKind
SIGNAL_KIND_RATING: SignalKind
SIGNAL_KIND_CORRECTION: SignalKind
SIGNAL_KIND_RETRY: SignalKind
SIGNAL_KIND_FLAG: SignalKind
DRIFT_STATE_UNSPECIFIED: DriftState
DRIFT_STATE_STABLE: DriftState
DRIFT_STATE_DRIFTED: DriftState
DRIFT_STATE_TOO_LITTLE_DATA: DriftState

class Interaction(_message.Message):
    __slots__ = ("interaction_id", "model_name", "version_id", "prompt_conversation", "completion", "time", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    interaction_id: str
    model_name: str
    version_id: str
    prompt_conversation: _containers.RepeatedCompositeFieldContainer[_message_pb2.Message]
    completion: _containers.RepeatedCompositeFieldContainer[_message_pb2.Message]
    time: _timestamp_pb2.Timestamp
    labels: _containers.ScalarMap[str, str]
    def __init__(self, interaction_id: _Optional[str] = ..., model_name: _Optional[str] = ..., version_id: _Optional[str] = ..., prompt_conversation: _Optional[_Iterable[_Union[_message_pb2.Message, _Mapping]]] = ..., completion: _Optional[_Iterable[_Union[_message_pb2.Message, _Mapping]]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Signal(_message.Message):
    __slots__ = ("signal_id", "interaction_id", "kind", "value", "correction", "comment", "time")
    SIGNAL_ID_FIELD_NUMBER: _ClassVar[int]
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    signal_id: str
    interaction_id: str
    kind: SignalKind
    value: float
    correction: _containers.RepeatedCompositeFieldContainer[_message_pb2.Message]
    comment: str
    time: _timestamp_pb2.Timestamp
    def __init__(self, signal_id: _Optional[str] = ..., interaction_id: _Optional[str] = ..., kind: _Optional[_Union[SignalKind, str]] = ..., value: _Optional[float] = ..., correction: _Optional[_Iterable[_Union[_message_pb2.Message, _Mapping]]] = ..., comment: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class IngestInteractionsRequest(_message.Message):
    __slots__ = ("interactions",)
    INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    interactions: _containers.RepeatedCompositeFieldContainer[Interaction]
    def __init__(self, interactions: _Optional[_Iterable[_Union[Interaction, _Mapping]]] = ...) -> None: ...

class IngestInteractionsResponse(_message.Message):
    __slots__ = ("num_added",)
    NUM_ADDED_FIELD_NUMBER: _ClassVar[int]
    num_added: int
    def __init__(self, num_added: _Optional[int] = ...) -> None: ...

class RecordSignalsRequest(_message.Message):
    __slots__ = ("signals",)
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    signals: _containers.RepeatedCompositeFieldContainer[Signal]
    def __init__(self, signals: _Optional[_Iterable[_Union[Signal, _Mapping]]] = ...) -> None: ...

class RecordSignalsResponse(_message.Message):
    __slots__ = ("num_added",)
    NUM_ADDED_FIELD_NUMBER: _ClassVar[int]
    num_added: int
    def __init__(self, num_added: _Optional[int] = ...) -> None: ...

class Trigger(_message.Message):
    __slots__ = ("min_new_interactions", "min_new_signals", "mean_score_below", "drift_above", "baseline_older_than")
    MIN_NEW_INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    MIN_NEW_SIGNALS_FIELD_NUMBER: _ClassVar[int]
    MEAN_SCORE_BELOW_FIELD_NUMBER: _ClassVar[int]
    DRIFT_ABOVE_FIELD_NUMBER: _ClassVar[int]
    BASELINE_OLDER_THAN_FIELD_NUMBER: _ClassVar[int]
    min_new_interactions: int
    min_new_signals: int
    mean_score_below: float
    drift_above: float
    baseline_older_than: _duration_pb2.Duration
    def __init__(self, min_new_interactions: _Optional[int] = ..., min_new_signals: _Optional[int] = ..., mean_score_below: _Optional[float] = ..., drift_above: _Optional[float] = ..., baseline_older_than: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CheckTriggersRequest(_message.Message):
    __slots__ = ("model_name", "triggers")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    TRIGGERS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    triggers: _containers.RepeatedCompositeFieldContainer[Trigger]
    def __init__(self, model_name: _Optional[str] = ..., triggers: _Optional[_Iterable[_Union[Trigger, _Mapping]]] = ...) -> None: ...

class CheckTriggersResponse(_message.Message):
    __slots__ = ("should_retrain", "results")
    SHOULD_RETRAIN_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    should_retrain: bool
    results: _containers.RepeatedCompositeFieldContainer[TriggerResult]
    def __init__(self, should_retrain: bool = ..., results: _Optional[_Iterable[_Union[TriggerResult, _Mapping]]] = ...) -> None: ...

class TriggerResult(_message.Message):
    __slots__ = ("fired", "value", "explanation")
    FIRED_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    fired: bool
    value: float
    explanation: str
    def __init__(self, fired: bool = ..., value: _Optional[float] = ..., explanation: _Optional[str] = ...) -> None: ...

class CurateExamplesRequest(_message.Message):
    __slots__ = ("request_id", "model_name", "min_score", "only_new", "use_corrections", "remove_duplicates", "max_examples")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    ONLY_NEW_FIELD_NUMBER: _ClassVar[int]
    USE_CORRECTIONS_FIELD_NUMBER: _ClassVar[int]
    REMOVE_DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    MAX_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model_name: str
    min_score: float
    only_new: bool
    use_corrections: bool
    remove_duplicates: bool
    max_examples: int
    def __init__(self, request_id: _Optional[str] = ..., model_name: _Optional[str] = ..., min_score: _Optional[float] = ..., only_new: bool = ..., use_corrections: bool = ..., remove_duplicates: bool = ..., max_examples: _Optional[int] = ...) -> None: ...

class CurateExamplesResponse(_message.Message):
    __slots__ = ("curation",)
    CURATION_FIELD_NUMBER: _ClassVar[int]
    curation: Curation
    def __init__(self, curation: _Optional[_Union[Curation, _Mapping]] = ...) -> None: ...

class Curation(_message.Message):
    __slots__ = ("curation_id", "num_considered", "num_examples", "num_dropped", "fingerprint")
    class NumDroppedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    CURATION_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_CONSIDERED_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_DROPPED_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    curation_id: str
    num_considered: int
    num_examples: int
    num_dropped: _containers.ScalarMap[str, int]
    fingerprint: str
    def __init__(self, curation_id: _Optional[str] = ..., num_considered: _Optional[int] = ..., num_examples: _Optional[int] = ..., num_dropped: _Optional[_Mapping[str, int]] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class ExportExamplesRequest(_message.Message):
    __slots__ = ("curation_id",)
    CURATION_ID_FIELD_NUMBER: _ClassVar[int]
    curation_id: str
    def __init__(self, curation_id: _Optional[str] = ...) -> None: ...

class ExportExamplesResponse(_message.Message):
    __slots__ = ("examples",)
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    examples: _containers.RepeatedCompositeFieldContainer[Example]
    def __init__(self, examples: _Optional[_Iterable[_Union[Example, _Mapping]]] = ...) -> None: ...

class Example(_message.Message):
    __slots__ = ("interaction_id", "messages", "score", "corrected", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    interaction_id: str
    messages: _containers.RepeatedCompositeFieldContainer[_message_pb2.Message]
    score: float
    corrected: bool
    labels: _containers.ScalarMap[str, str]
    def __init__(self, interaction_id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[_message_pb2.Message, _Mapping]]] = ..., score: _Optional[float] = ..., corrected: bool = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ExportPreferencePairsRequest(_message.Message):
    __slots__ = ("model_name", "min_margin", "only_new", "include_ties")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MIN_MARGIN_FIELD_NUMBER: _ClassVar[int]
    ONLY_NEW_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_TIES_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    min_margin: float
    only_new: bool
    include_ties: bool
    def __init__(self, model_name: _Optional[str] = ..., min_margin: _Optional[float] = ..., only_new: bool = ..., include_ties: bool = ...) -> None: ...

class ExportPreferencePairsResponse(_message.Message):
    __slots__ = ("pairs",)
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    pairs: _containers.RepeatedCompositeFieldContainer[PreferencePair]
    def __init__(self, pairs: _Optional[_Iterable[_Union[PreferencePair, _Mapping]]] = ...) -> None: ...

class PreferencePair(_message.Message):
    __slots__ = ("labeled_comparison", "interaction_id_a", "interaction_id_b", "margin")
    LABELED_COMPARISON_FIELD_NUMBER: _ClassVar[int]
    INTERACTION_ID_A_FIELD_NUMBER: _ClassVar[int]
    INTERACTION_ID_B_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    labeled_comparison: _comparison_pb2.LabeledComparison
    interaction_id_a: str
    interaction_id_b: str
    margin: float
    def __init__(self, labeled_comparison: _Optional[_Union[_comparison_pb2.LabeledComparison, _Mapping]] = ..., interaction_id_a: _Optional[str] = ..., interaction_id_b: _Optional[str] = ..., margin: _Optional[float] = ...) -> None: ...

class Baseline(_message.Message):
    __slots__ = ("baseline_id", "model_name", "version_id", "time", "num_interactions", "mean_score")
    BASELINE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    NUM_INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    MEAN_SCORE_FIELD_NUMBER: _ClassVar[int]
    baseline_id: str
    model_name: str
    version_id: str
    time: _timestamp_pb2.Timestamp
    num_interactions: int
    mean_score: float
    def __init__(self, baseline_id: _Optional[str] = ..., model_name: _Optional[str] = ..., version_id: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., num_interactions: _Optional[int] = ..., mean_score: _Optional[float] = ...) -> None: ...

class UpdateBaselineRequest(_message.Message):
    __slots__ = ("request_id", "model_name", "version_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model_name: str
    version_id: str
    def __init__(self, request_id: _Optional[str] = ..., model_name: _Optional[str] = ..., version_id: _Optional[str] = ...) -> None: ...

class UpdateBaselineResponse(_message.Message):
    __slots__ = ("baseline",)
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    baseline: Baseline
    def __init__(self, baseline: _Optional[_Union[Baseline, _Mapping]] = ...) -> None: ...

class GetDriftStatusRequest(_message.Message):
    __slots__ = ("model_name",)
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    def __init__(self, model_name: _Optional[str] = ...) -> None: ...

class GetDriftStatusResponse(_message.Message):
    __slots__ = ("state", "baseline", "num_new_interactions", "drifts")
    STATE_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    NUM_NEW_INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    DRIFTS_FIELD_NUMBER: _ClassVar[int]
    state: DriftState
    baseline: Baseline
    num_new_interactions: int
    drifts: _containers.RepeatedCompositeFieldContainer[Drift]
    def __init__(self, state: _Optional[_Union[DriftState, str]] = ..., baseline: _Optional[_Union[Baseline, _Mapping]] = ..., num_new_interactions: _Optional[int] = ..., drifts: _Optional[_Iterable[_Union[Drift, _Mapping]]] = ...) -> None: ...

class Drift(_message.Message):
    __slots__ = ("measure", "baseline_value", "new_value", "drift", "threshold")
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    BASELINE_VALUE_FIELD_NUMBER: _ClassVar[int]
    NEW_VALUE_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    measure: str
    baseline_value: float
    new_value: float
    drift: float
    threshold: float
    def __init__(self, measure: _Optional[str] = ..., baseline_value: _Optional[float] = ..., new_value: _Optional[float] = ..., drift: _Optional[float] = ..., threshold: _Optional[float] = ...) -> None: ...

class GetQualityMetricsRequest(_message.Message):
    __slots__ = ("model_name", "version_id", "only_new")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_ID_FIELD_NUMBER: _ClassVar[int]
    ONLY_NEW_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    version_id: str
    only_new: bool
    def __init__(self, model_name: _Optional[str] = ..., version_id: _Optional[str] = ..., only_new: bool = ...) -> None: ...

class GetQualityMetricsResponse(_message.Message):
    __slots__ = ("num_interactions", "num_scored", "mean_score", "signals")
    NUM_INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_SCORED_FIELD_NUMBER: _ClassVar[int]
    MEAN_SCORE_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    num_interactions: int
    num_scored: int
    mean_score: float
    signals: _containers.RepeatedCompositeFieldContainer[SignalCount]
    def __init__(self, num_interactions: _Optional[int] = ..., num_scored: _Optional[int] = ..., mean_score: _Optional[float] = ..., signals: _Optional[_Iterable[_Union[SignalCount, _Mapping]]] = ...) -> None: ...

class SignalCount(_message.Message):
    __slots__ = ("kind", "count")
    KIND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    kind: SignalKind
    count: int
    def __init__(self, kind: _Optional[_Union[SignalKind, str]] = ..., count: _Optional[int] = ...) -> None: ...
