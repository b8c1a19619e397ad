from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetAdapterInfoRequest(_message.Message):
    __slots__ = ("host_version", "host_contract_versions")
    HOST_VERSION_FIELD_NUMBER: _ClassVar[int]
    HOST_CONTRACT_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    host_version: str
    host_contract_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, host_version: _Optional[str] = ..., host_contract_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class GetAdapterInfoResponse(_message.Message):
    __slots__ = ("name", "version", "language", "contract_versions", "ports", "instance_id", "max_message_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    language: str
    contract_versions: _containers.RepeatedScalarFieldContainer[int]
    ports: _containers.RepeatedCompositeFieldContainer[PortSupport]
    instance_id: str
    max_message_bytes: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., language: _Optional[str] = ..., contract_versions: _Optional[_Iterable[int]] = ..., ports: _Optional[_Iterable[_Union[PortSupport, _Mapping]]] = ..., instance_id: _Optional[str] = ..., max_message_bytes: _Optional[int] = ...) -> None: ...

class PortSupport(_message.Message):
    __slots__ = ("service", "descriptor_sha256", "capabilities", "config_schema", "max_in_flight")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_SHA256_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    service: str
    descriptor_sha256: str
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    config_schema: _struct_pb2.Struct
    max_in_flight: int
    def __init__(self, service: _Optional[str] = ..., descriptor_sha256: _Optional[str] = ..., capabilities: _Optional[_Iterable[str]] = ..., config_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., max_in_flight: _Optional[int] = ...) -> None: ...

class ConfigureRequest(_message.Message):
    __slots__ = ("instance", "service", "generation", "settings", "secrets")
    class SecretsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    instance: str
    service: str
    generation: int
    settings: _struct_pb2.Struct
    secrets: _containers.ScalarMap[str, str]
    def __init__(self, instance: _Optional[str] = ..., service: _Optional[str] = ..., generation: _Optional[int] = ..., settings: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., secrets: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ConfigureResponse(_message.Message):
    __slots__ = ("warnings",)
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("instance",)
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    def __init__(self, instance: _Optional[str] = ...) -> None: ...

class ProbeResponse(_message.Message):
    __slots__ = ("state", "detail")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[ProbeResponse.State]
        STATE_READY: _ClassVar[ProbeResponse.State]
        STATE_STARTING: _ClassVar[ProbeResponse.State]
        STATE_DEGRADED: _ClassVar[ProbeResponse.State]
    STATE_UNSPECIFIED: ProbeResponse.State
    STATE_READY: ProbeResponse.State
    STATE_STARTING: ProbeResponse.State
    STATE_DEGRADED: ProbeResponse.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    state: ProbeResponse.State
    detail: str
    def __init__(self, state: _Optional[_Union[ProbeResponse.State, str]] = ..., detail: _Optional[str] = ...) -> None: ...
