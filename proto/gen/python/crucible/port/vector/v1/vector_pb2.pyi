from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from crucible.type.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Metric(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METRIC_UNSPECIFIED: _ClassVar[Metric]
    METRIC_COSINE: _ClassVar[Metric]
    METRIC_L2: _ClassVar[Metric]
    METRIC_INNER_PRODUCT: _ClassVar[Metric]
METRIC_UNSPECIFIED: Metric
METRIC_COSINE: Metric
METRIC_L2: Metric
METRIC_INNER_PRODUCT: Metric

class Collection(_message.Message):
    __slots__ = ("name", "metric", "dimension", "metadata", "num_items")
    NAME_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    metric: Metric
    dimension: int
    metadata: _struct_pb2.Struct
    num_items: int
    def __init__(self, name: _Optional[str] = ..., metric: _Optional[_Union[Metric, str]] = ..., dimension: _Optional[int] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., num_items: _Optional[int] = ...) -> None: ...

class CreateCollectionRequest(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: Collection
    def __init__(self, collection: _Optional[_Union[Collection, _Mapping]] = ...) -> None: ...

class CreateCollectionResponse(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: Collection
    def __init__(self, collection: _Optional[_Union[Collection, _Mapping]] = ...) -> None: ...

class GetCollectionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetCollectionResponse(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: Collection
    def __init__(self, collection: _Optional[_Union[Collection, _Mapping]] = ...) -> None: ...

class ListCollectionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListCollectionsResponse(_message.Message):
    __slots__ = ("collections", "next_page_token")
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    collections: _containers.RepeatedCompositeFieldContainer[Collection]
    next_page_token: str
    def __init__(self, collections: _Optional[_Iterable[_Union[Collection, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteCollectionRequest(_message.Message):
    __slots__ = ("name", "allow_missing")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALLOW_MISSING_FIELD_NUMBER: _ClassVar[int]
    name: str
    allow_missing: bool
    def __init__(self, name: _Optional[str] = ..., allow_missing: bool = ...) -> None: ...

class DeleteCollectionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UpsertItemsRequest(_message.Message):
    __slots__ = ("collection", "ids", "vectors", "documents", "metadatas")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    METADATAS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    vectors: _tensor_pb2.Tensor
    documents: _containers.RepeatedScalarFieldContainer[str]
    metadatas: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ..., vectors: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., documents: _Optional[_Iterable[str]] = ..., metadatas: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ...) -> None: ...

class UpsertItemsResponse(_message.Message):
    __slots__ = ("num_added", "num_replaced")
    NUM_ADDED_FIELD_NUMBER: _ClassVar[int]
    NUM_REPLACED_FIELD_NUMBER: _ClassVar[int]
    num_added: int
    num_replaced: int
    def __init__(self, num_added: _Optional[int] = ..., num_replaced: _Optional[int] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("condition", "all", "any")
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    ANY_FIELD_NUMBER: _ClassVar[int]
    condition: MetadataCondition
    all: FilterList
    any: FilterList
    def __init__(self, condition: _Optional[_Union[MetadataCondition, _Mapping]] = ..., all: _Optional[_Union[FilterList, _Mapping]] = ..., any: _Optional[_Union[FilterList, _Mapping]] = ...) -> None: ...

class FilterList(_message.Message):
    __slots__ = ("filters",)
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    filters: _containers.RepeatedCompositeFieldContainer[Filter]
    def __init__(self, filters: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ...) -> None: ...

class MetadataCondition(_message.Message):
    __slots__ = ("key", "operator", "value")
    class Operator(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OPERATOR_UNSPECIFIED: _ClassVar[MetadataCondition.Operator]
        OPERATOR_EQUAL: _ClassVar[MetadataCondition.Operator]
        OPERATOR_NOT_EQUAL: _ClassVar[MetadataCondition.Operator]
        OPERATOR_LESS: _ClassVar[MetadataCondition.Operator]
        OPERATOR_LESS_OR_EQUAL: _ClassVar[MetadataCondition.Operator]
        OPERATOR_GREATER: _ClassVar[MetadataCondition.Operator]
        OPERATOR_GREATER_OR_EQUAL: _ClassVar[MetadataCondition.Operator]
        OPERATOR_IN: _ClassVar[MetadataCondition.Operator]
        OPERATOR_NOT_IN: _ClassVar[MetadataCondition.Operator]
    OPERATOR_UNSPECIFIED: MetadataCondition.Operator
    OPERATOR_EQUAL: MetadataCondition.Operator
    OPERATOR_NOT_EQUAL: MetadataCondition.Operator
    OPERATOR_LESS: MetadataCondition.Operator
    OPERATOR_LESS_OR_EQUAL: MetadataCondition.Operator
    OPERATOR_GREATER: MetadataCondition.Operator
    OPERATOR_GREATER_OR_EQUAL: MetadataCondition.Operator
    OPERATOR_IN: MetadataCondition.Operator
    OPERATOR_NOT_IN: MetadataCondition.Operator
    KEY_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    operator: MetadataCondition.Operator
    value: _struct_pb2.Value
    def __init__(self, key: _Optional[str] = ..., operator: _Optional[_Union[MetadataCondition.Operator, str]] = ..., value: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ...) -> None: ...

class QueryItemsRequest(_message.Message):
    __slots__ = ("collection", "vectors", "num_results", "filter")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    NUM_RESULTS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    collection: str
    vectors: _tensor_pb2.Tensor
    num_results: int
    filter: Filter
    def __init__(self, collection: _Optional[str] = ..., vectors: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., num_results: _Optional[int] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ...) -> None: ...

class QueryItemsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[QueryResult]
    def __init__(self, results: _Optional[_Iterable[_Union[QueryResult, _Mapping]]] = ...) -> None: ...

class QueryResult(_message.Message):
    __slots__ = ("ids", "documents", "metadatas", "distances_float32")
    IDS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    METADATAS_FIELD_NUMBER: _ClassVar[int]
    DISTANCES_FLOAT32_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    documents: _containers.RepeatedScalarFieldContainer[str]
    metadatas: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    distances_float32: bytes
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., documents: _Optional[_Iterable[str]] = ..., metadatas: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., distances_float32: _Optional[bytes] = ...) -> None: ...

class ListItemsRequest(_message.Message):
    __slots__ = ("collection", "ids", "filter", "include_vectors", "page_size", "page_token")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_VECTORS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    filter: Filter
    include_vectors: bool
    page_size: int
    page_token: str
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., include_vectors: bool = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListItemsResponse(_message.Message):
    __slots__ = ("ids", "documents", "metadatas", "vectors", "next_page_token")
    IDS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    METADATAS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    documents: _containers.RepeatedScalarFieldContainer[str]
    metadatas: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    vectors: _tensor_pb2.Tensor
    next_page_token: str
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., documents: _Optional[_Iterable[str]] = ..., metadatas: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., vectors: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteItemsRequest(_message.Message):
    __slots__ = ("collection", "ids", "filter")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    filter: Filter
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ...) -> None: ...

class DeleteItemsResponse(_message.Message):
    __slots__ = ("num_deleted",)
    NUM_DELETED_FIELD_NUMBER: _ClassVar[int]
    num_deleted: int
    def __init__(self, num_deleted: _Optional[int] = ...) -> None: ...
