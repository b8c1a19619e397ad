from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdapterState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_STATE_UNSPECIFIED: _ClassVar[AdapterState]
    ADAPTER_STATE_IDLE: _ClassVar[AdapterState]
    ADAPTER_STATE_READY: _ClassVar[AdapterState]
    ADAPTER_STATE_STARTING: _ClassVar[AdapterState]
    ADAPTER_STATE_DEGRADED: _ClassVar[AdapterState]

class AdapterSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_SOURCE_UNSPECIFIED: _ClassVar[AdapterSource]
    ADAPTER_SOURCE_DEFAULT: _ClassVar[AdapterSource]
    ADAPTER_SOURCE_MANIFEST: _ClassVar[AdapterSource]
    ADAPTER_SOURCE_ADDED: _ClassVar[AdapterSource]
ADAPTER_STATE_UNSPECIFIED: AdapterState
ADAPTER_STATE_IDLE: AdapterState
ADAPTER_STATE_READY: AdapterState
ADAPTER_STATE_STARTING: AdapterState
ADAPTER_STATE_DEGRADED: AdapterState
ADAPTER_SOURCE_UNSPECIFIED: AdapterSource
ADAPTER_SOURCE_DEFAULT: AdapterSource
ADAPTER_SOURCE_MANIFEST: AdapterSource
ADAPTER_SOURCE_ADDED: AdapterSource

class Adapter(_message.Message):
    __slots__ = ("port", "target", "service", "state", "name", "version", "capabilities", "detail", "source", "instance_id", "options", "secrets", "token_env", "last_error")
    class SecretsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PORT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ENV_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    port: str
    target: str
    service: str
    state: AdapterState
    name: str
    version: str
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    detail: str
    source: AdapterSource
    instance_id: str
    options: _struct_pb2.Struct
    secrets: _containers.ScalarMap[str, str]
    token_env: str
    last_error: str
    def __init__(self, port: _Optional[str] = ..., target: _Optional[str] = ..., service: _Optional[str] = ..., state: _Optional[_Union[AdapterState, str]] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., capabilities: _Optional[_Iterable[str]] = ..., detail: _Optional[str] = ..., source: _Optional[_Union[AdapterSource, str]] = ..., instance_id: _Optional[str] = ..., options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., secrets: _Optional[_Mapping[str, str]] = ..., token_env: _Optional[str] = ..., last_error: _Optional[str] = ...) -> None: ...

class AdapterMapping(_message.Message):
    __slots__ = ("adapter", "command", "options", "secrets", "tls", "token_env", "wait_seconds", "insecure")
    class SecretsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    TLS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ENV_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INSECURE_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    command: _containers.RepeatedScalarFieldContainer[str]
    options: _struct_pb2.Struct
    secrets: _containers.ScalarMap[str, str]
    tls: AdapterTls
    token_env: str
    wait_seconds: float
    insecure: bool
    def __init__(self, adapter: _Optional[str] = ..., command: _Optional[_Iterable[str]] = ..., options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., secrets: _Optional[_Mapping[str, str]] = ..., tls: _Optional[_Union[AdapterTls, _Mapping]] = ..., token_env: _Optional[str] = ..., wait_seconds: _Optional[float] = ..., insecure: bool = ...) -> None: ...

class AdapterTls(_message.Message):
    __slots__ = ("ca", "cert", "key", "server_name")
    CA_FIELD_NUMBER: _ClassVar[int]
    CERT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    ca: str
    cert: str
    key: str
    server_name: str
    def __init__(self, ca: _Optional[str] = ..., cert: _Optional[str] = ..., key: _Optional[str] = ..., server_name: _Optional[str] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters",)
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    def __init__(self, adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ...) -> None: ...

class ProbeAdapterRequest(_message.Message):
    __slots__ = ("port",)
    PORT_FIELD_NUMBER: _ClassVar[int]
    port: str
    def __init__(self, port: _Optional[str] = ...) -> None: ...

class ProbeAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class AddAdapterRequest(_message.Message):
    __slots__ = ("port", "mapping", "validate_only", "force")
    PORT_FIELD_NUMBER: _ClassVar[int]
    MAPPING_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    port: str
    mapping: AdapterMapping
    validate_only: bool
    force: bool
    def __init__(self, port: _Optional[str] = ..., mapping: _Optional[_Union[AdapterMapping, _Mapping]] = ..., validate_only: bool = ..., force: bool = ...) -> None: ...

class AddAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class RemoveAdapterRequest(_message.Message):
    __slots__ = ("port", "force")
    PORT_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    port: str
    force: bool
    def __init__(self, port: _Optional[str] = ..., force: bool = ...) -> None: ...

class RemoveAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...
