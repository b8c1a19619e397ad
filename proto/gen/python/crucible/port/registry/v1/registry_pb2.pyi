import datetime

from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VersionStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERSION_STAGE_UNSPECIFIED: _ClassVar[VersionStage]
    VERSION_STAGE_EXPERIMENT: _ClassVar[VersionStage]
    VERSION_STAGE_STAGING: _ClassVar[VersionStage]
    VERSION_STAGE_PRODUCTION: _ClassVar[VersionStage]
    VERSION_STAGE_ARCHIVED: _ClassVar[VersionStage]

class NodeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_KIND_UNSPECIFIED: _ClassVar[NodeKind]
    NODE_KIND_MODEL_VERSION: _ClassVar[NodeKind]
    NODE_KIND_DATASET: _ClassVar[NodeKind]
    NODE_KIND_RUN: _ClassVar[NodeKind]
    NODE_KIND_ARTIFACT: _ClassVar[NodeKind]

class EdgeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EDGE_KIND_UNSPECIFIED: _ClassVar[EdgeKind]
    EDGE_KIND_TRAINED_ON: _ClassVar[EdgeKind]
    EDGE_KIND_FINE_TUNED_FROM: _ClassVar[EdgeKind]
    EDGE_KIND_DPO_TRAINED_FROM: _ClassVar[EdgeKind]
    EDGE_KIND_RL_TRAINED_FROM: _ClassVar[EdgeKind]
    EDGE_KIND_DISTILLED_FROM: _ClassVar[EdgeKind]
    EDGE_KIND_EVALUATED_ON: _ClassVar[EdgeKind]
    EDGE_KIND_PRODUCED_BY: _ClassVar[EdgeKind]
    EDGE_KIND_CURATED_FROM: _ClassVar[EdgeKind]
VERSION_STAGE_UNSPECIFIED: VersionStage
VERSION_STAGE_EXPERIMENT: VersionStage
VERSION_STAGE_STAGING: VersionStage
VERSION_STAGE_PRODUCTION: VersionStage
VERSION_STAGE_ARCHIVED: VersionStage
NODE_KIND_UNSPECIFIED: NodeKind
NODE_KIND_MODEL_VERSION: NodeKind
NODE_KIND_DATASET: NodeKind
NODE_KIND_RUN: NodeKind
NODE_KIND_ARTIFACT: NodeKind
EDGE_KIND_UNSPECIFIED: EdgeKind
EDGE_KIND_TRAINED_ON: EdgeKind
EDGE_KIND_FINE_TUNED_FROM: EdgeKind
EDGE_KIND_DPO_TRAINED_FROM: EdgeKind
EDGE_KIND_RL_TRAINED_FROM: EdgeKind
EDGE_KIND_DISTILLED_FROM: EdgeKind
EDGE_KIND_EVALUATED_ON: EdgeKind
EDGE_KIND_PRODUCED_BY: EdgeKind
EDGE_KIND_CURATED_FROM: EdgeKind

class LineageNode(_message.Message):
    __slots__ = ("kind", "id")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    kind: NodeKind
    id: str
    def __init__(self, kind: _Optional[_Union[NodeKind, str]] = ..., id: _Optional[str] = ...) -> None: ...

class LineageEdge(_message.Message):
    __slots__ = ("kind", "from_node", "to_node")
    KIND_FIELD_NUMBER: _ClassVar[int]
    FROM_NODE_FIELD_NUMBER: _ClassVar[int]
    TO_NODE_FIELD_NUMBER: _ClassVar[int]
    kind: EdgeKind
    from_node: LineageNode
    to_node: LineageNode
    def __init__(self, kind: _Optional[_Union[EdgeKind, str]] = ..., from_node: _Optional[_Union[LineageNode, _Mapping]] = ..., to_node: _Optional[_Union[LineageNode, _Mapping]] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("version_id", "model_name", "run_id", "checkpoint_uri", "manifest_sha256", "base_model", "config_sha256", "metrics", "stage", "artifacts", "create_time")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VERSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_URI_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SHA256_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    version_id: str
    model_name: str
    run_id: str
    checkpoint_uri: str
    manifest_sha256: str
    base_model: str
    config_sha256: str
    metrics: _containers.ScalarMap[str, float]
    stage: VersionStage
    artifacts: _containers.RepeatedCompositeFieldContainer[Artifact]
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, version_id: _Optional[str] = ..., model_name: _Optional[str] = ..., run_id: _Optional[str] = ..., checkpoint_uri: _Optional[str] = ..., manifest_sha256: _Optional[str] = ..., base_model: _Optional[str] = ..., config_sha256: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ..., stage: _Optional[_Union[VersionStage, str]] = ..., artifacts: _Optional[_Iterable[_Union[Artifact, _Mapping]]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Artifact(_message.Message):
    __slots__ = ("name", "uri", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    uri: str
    sha256: str
    def __init__(self, name: _Optional[str] = ..., uri: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class RegisterVersionRequest(_message.Message):
    __slots__ = ("version", "lineage")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    version: ModelVersion
    lineage: _containers.RepeatedCompositeFieldContainer[LineageEdge]
    def __init__(self, version: _Optional[_Union[ModelVersion, _Mapping]] = ..., lineage: _Optional[_Iterable[_Union[LineageEdge, _Mapping]]] = ...) -> None: ...

class RegisterVersionResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: ModelVersion
    def __init__(self, version: _Optional[_Union[ModelVersion, _Mapping]] = ...) -> None: ...

class GetVersionRequest(_message.Message):
    __slots__ = ("version_id", "run_id")
    VERSION_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    version_id: str
    run_id: str
    def __init__(self, version_id: _Optional[str] = ..., run_id: _Optional[str] = ...) -> None: ...

class GetVersionResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: ModelVersion
    def __init__(self, version: _Optional[_Union[ModelVersion, _Mapping]] = ...) -> None: ...

class ListVersionsRequest(_message.Message):
    __slots__ = ("model_name", "stage", "config_sha256", "page_size", "page_token")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SHA256_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    stage: VersionStage
    config_sha256: str
    page_size: int
    page_token: str
    def __init__(self, model_name: _Optional[str] = ..., stage: _Optional[_Union[VersionStage, str]] = ..., config_sha256: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListVersionsResponse(_message.Message):
    __slots__ = ("versions", "next_page_token")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersion]
    next_page_token: str
    def __init__(self, versions: _Optional[_Iterable[_Union[ModelVersion, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class PromoteVersionRequest(_message.Message):
    __slots__ = ("version_id", "stage")
    VERSION_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    version_id: str
    stage: VersionStage
    def __init__(self, version_id: _Optional[str] = ..., stage: _Optional[_Union[VersionStage, str]] = ...) -> None: ...

class PromoteVersionResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: ModelVersion
    def __init__(self, version: _Optional[_Union[ModelVersion, _Mapping]] = ...) -> None: ...

class AddArtifactRequest(_message.Message):
    __slots__ = ("version_id", "artifact")
    VERSION_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    version_id: str
    artifact: Artifact
    def __init__(self, version_id: _Optional[str] = ..., artifact: _Optional[_Union[Artifact, _Mapping]] = ...) -> None: ...

class AddArtifactResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: ModelVersion
    def __init__(self, version: _Optional[_Union[ModelVersion, _Mapping]] = ...) -> None: ...

class GetLineageRequest(_message.Message):
    __slots__ = ("node", "direction", "max_depth")
    class Direction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DIRECTION_UNSPECIFIED: _ClassVar[GetLineageRequest.Direction]
        DIRECTION_ANCESTORS: _ClassVar[GetLineageRequest.Direction]
        DIRECTION_DESCENDANTS: _ClassVar[GetLineageRequest.Direction]
    DIRECTION_UNSPECIFIED: GetLineageRequest.Direction
    DIRECTION_ANCESTORS: GetLineageRequest.Direction
    DIRECTION_DESCENDANTS: GetLineageRequest.Direction
    NODE_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    MAX_DEPTH_FIELD_NUMBER: _ClassVar[int]
    node: LineageNode
    direction: GetLineageRequest.Direction
    max_depth: int
    def __init__(self, node: _Optional[_Union[LineageNode, _Mapping]] = ..., direction: _Optional[_Union[GetLineageRequest.Direction, str]] = ..., max_depth: _Optional[int] = ...) -> None: ...

class GetLineageResponse(_message.Message):
    __slots__ = ("edges",)
    EDGES_FIELD_NUMBER: _ClassVar[int]
    edges: _containers.RepeatedCompositeFieldContainer[LineageEdge]
    def __init__(self, edges: _Optional[_Iterable[_Union[LineageEdge, _Mapping]]] = ...) -> None: ...
