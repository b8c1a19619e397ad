from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from crucible.type.v1 import tensor_pb2 as _tensor_pb2
from crucible.type.v1 import usage_pb2 as _usage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TextUse(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TEXT_USE_UNSPECIFIED: _ClassVar[TextUse]
    TEXT_USE_QUERY: _ClassVar[TextUse]
    TEXT_USE_DOCUMENT: _ClassVar[TextUse]
TEXT_USE_UNSPECIFIED: TextUse
TEXT_USE_QUERY: TextUse
TEXT_USE_DOCUMENT: TextUse

class EmbedTextsRequest(_message.Message):
    __slots__ = ("model", "texts", "dimension", "use", "normalize")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    USE_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    model: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    dimension: int
    use: TextUse
    normalize: bool
    def __init__(self, model: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., dimension: _Optional[int] = ..., use: _Optional[_Union[TextUse, str]] = ..., normalize: bool = ...) -> None: ...

class EmbedTextsResponse(_message.Message):
    __slots__ = ("model", "dimension", "vectors", "usage", "cost")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    model: str
    dimension: int
    vectors: _tensor_pb2.Tensor
    usage: _usage_pb2.TokenUsage
    cost: _usage_pb2.Cost
    def __init__(self, model: _Optional[str] = ..., dimension: _Optional[int] = ..., vectors: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., usage: _Optional[_Union[_usage_pb2.TokenUsage, _Mapping]] = ..., cost: _Optional[_Union[_usage_pb2.Cost, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[EmbeddingModel]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[EmbeddingModel, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class EmbeddingModel(_message.Message):
    __slots__ = ("name", "dimension", "max_input_tokens", "price_per_million_tokens")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRICE_PER_MILLION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dimension: int
    max_input_tokens: int
    price_per_million_tokens: _usage_pb2.Cost
    def __init__(self, name: _Optional[str] = ..., dimension: _Optional[int] = ..., max_input_tokens: _Optional[int] = ..., price_per_million_tokens: _Optional[_Union[_usage_pb2.Cost, _Mapping]] = ...) -> None: ...
