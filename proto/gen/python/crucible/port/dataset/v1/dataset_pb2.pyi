from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DatasetSource(_message.Message):
    __slots__ = ("uri", "config", "split", "revision")
    URI_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    uri: str
    config: str
    split: str
    revision: str
    def __init__(self, uri: _Optional[str] = ..., config: _Optional[str] = ..., split: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class FindDatasetRequest(_message.Message):
    __slots__ = ("source",)
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    source: DatasetSource
    def __init__(self, source: _Optional[_Union[DatasetSource, _Mapping]] = ...) -> None: ...

class FindDatasetResponse(_message.Message):
    __slots__ = ("source",)
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    source: DatasetSource
    def __init__(self, source: _Optional[_Union[DatasetSource, _Mapping]] = ...) -> None: ...

class DatasetTransform(_message.Message):
    __slots__ = ("skip", "take", "shuffle_seed", "select", "fields")
    SKIP_FIELD_NUMBER: _ClassVar[int]
    TAKE_FIELD_NUMBER: _ClassVar[int]
    SHUFFLE_SEED_FIELD_NUMBER: _ClassVar[int]
    SELECT_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    skip: int
    take: int
    shuffle_seed: int
    select: RowIndices
    fields: FieldMapping
    def __init__(self, skip: _Optional[int] = ..., take: _Optional[int] = ..., shuffle_seed: _Optional[int] = ..., select: _Optional[_Union[RowIndices, _Mapping]] = ..., fields: _Optional[_Union[FieldMapping, _Mapping]] = ...) -> None: ...

class FieldMapping(_message.Message):
    __slots__ = ("source_by_name",)
    class SourceByNameEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SOURCE_BY_NAME_FIELD_NUMBER: _ClassVar[int]
    source_by_name: _containers.ScalarMap[str, str]
    def __init__(self, source_by_name: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RowIndices(_message.Message):
    __slots__ = ("indices",)
    INDICES_FIELD_NUMBER: _ClassVar[int]
    indices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, indices: _Optional[_Iterable[int]] = ...) -> None: ...

class OpenDatasetRequest(_message.Message):
    __slots__ = ("source", "transforms", "streaming")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TRANSFORMS_FIELD_NUMBER: _ClassVar[int]
    STREAMING_FIELD_NUMBER: _ClassVar[int]
    source: DatasetSource
    transforms: _containers.RepeatedCompositeFieldContainer[DatasetTransform]
    streaming: bool
    def __init__(self, source: _Optional[_Union[DatasetSource, _Mapping]] = ..., transforms: _Optional[_Iterable[_Union[DatasetTransform, _Mapping]]] = ..., streaming: bool = ...) -> None: ...

class OpenDatasetResponse(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: DatasetInfo
    def __init__(self, dataset: _Optional[_Union[DatasetInfo, _Mapping]] = ...) -> None: ...

class DatasetInfo(_message.Message):
    __slots__ = ("dataset_id", "source", "num_rows", "fingerprint", "columns")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    source: DatasetSource
    num_rows: int
    fingerprint: str
    columns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, dataset_id: _Optional[str] = ..., source: _Optional[_Union[DatasetSource, _Mapping]] = ..., num_rows: _Optional[int] = ..., fingerprint: _Optional[str] = ..., columns: _Optional[_Iterable[str]] = ...) -> None: ...

class GetDatasetInfoRequest(_message.Message):
    __slots__ = ("dataset_id",)
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    def __init__(self, dataset_id: _Optional[str] = ...) -> None: ...

class GetDatasetInfoResponse(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: DatasetInfo
    def __init__(self, dataset: _Optional[_Union[DatasetInfo, _Mapping]] = ...) -> None: ...

class ReadRowsRequest(_message.Message):
    __slots__ = ("dataset_id", "range", "select")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    SELECT_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    range: RowRange
    select: RowIndices
    def __init__(self, dataset_id: _Optional[str] = ..., range: _Optional[_Union[RowRange, _Mapping]] = ..., select: _Optional[_Union[RowIndices, _Mapping]] = ...) -> None: ...

class RowRange(_message.Message):
    __slots__ = ("start", "limit")
    START_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    start: int
    limit: int
    def __init__(self, start: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ReadRowsResponse(_message.Message):
    __slots__ = ("rows_json",)
    ROWS_JSON_FIELD_NUMBER: _ClassVar[int]
    rows_json: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, rows_json: _Optional[_Iterable[str]] = ...) -> None: ...

class CloseDatasetRequest(_message.Message):
    __slots__ = ("dataset_id",)
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    def __init__(self, dataset_id: _Optional[str] = ...) -> None: ...

class CloseDatasetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
