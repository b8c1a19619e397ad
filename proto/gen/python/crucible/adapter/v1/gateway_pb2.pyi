import datetime

from crucible.adapter.v1 import adapter_pb2 as _adapter_pb2
from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from crucible.type.v1 import failure_pb2 as _failure_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttachRequest(_message.Message):
    __slots__ = ("hello", "output", "end", "credit", "pong", "drain")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    output: CallOutput
    end: CallEnd
    credit: Credit
    pong: Pong
    drain: Drain
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., output: _Optional[_Union[CallOutput, _Mapping]] = ..., end: _Optional[_Union[CallEnd, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("welcome", "start", "input", "cancel", "credit", "ping", "drain")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    start: CallStart
    input: CallInput
    cancel: CallCancel
    credit: Credit
    ping: Ping
    drain: Drain
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., start: _Optional[_Union[CallStart, _Mapping]] = ..., input: _Optional[_Union[CallInput, _Mapping]] = ..., cancel: _Optional[_Union[CallCancel, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("name", "info", "lease_token", "window_bytes", "max_calls")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_FIELD_NUMBER: _ClassVar[int]
    name: str
    info: _adapter_pb2.GetAdapterInfoResponse
    lease_token: str
    window_bytes: int
    max_calls: int
    def __init__(self, name: _Optional[str] = ..., info: _Optional[_Union[_adapter_pb2.GetAdapterInfoResponse, _Mapping]] = ..., lease_token: _Optional[str] = ..., window_bytes: _Optional[int] = ..., max_calls: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("attachment_id", "heartbeat", "lease_token", "contract_version", "window_bytes")
    ATTACHMENT_ID_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_VERSION_FIELD_NUMBER: _ClassVar[int]
    WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    attachment_id: str
    heartbeat: _duration_pb2.Duration
    lease_token: str
    contract_version: int
    window_bytes: int
    def __init__(self, attachment_id: _Optional[str] = ..., heartbeat: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lease_token: _Optional[str] = ..., contract_version: _Optional[int] = ..., window_bytes: _Optional[int] = ...) -> None: ...

class CallStart(_message.Message):
    __slots__ = ("call_id", "method", "timeout", "metadata", "message", "more", "half_closed")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    HALF_CLOSED_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    method: str
    timeout: _duration_pb2.Duration
    metadata: _containers.ScalarMap[str, str]
    message: bytes
    more: bool
    half_closed: bool
    def __init__(self, call_id: _Optional[int] = ..., method: _Optional[str] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., message: _Optional[bytes] = ..., more: bool = ..., half_closed: bool = ...) -> None: ...

class CallInput(_message.Message):
    __slots__ = ("call_id", "message", "more", "half_closed")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    HALF_CLOSED_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    message: bytes
    more: bool
    half_closed: bool
    def __init__(self, call_id: _Optional[int] = ..., message: _Optional[bytes] = ..., more: bool = ..., half_closed: bool = ...) -> None: ...

class CallOutput(_message.Message):
    __slots__ = ("call_id", "message", "more", "end")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    message: bytes
    more: bool
    end: bool
    def __init__(self, call_id: _Optional[int] = ..., message: _Optional[bytes] = ..., more: bool = ..., end: bool = ...) -> None: ...

class CallEnd(_message.Message):
    __slots__ = ("call_id", "failure", "trailers")
    class TrailersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    TRAILERS_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    failure: _failure_pb2.Failure
    trailers: _containers.ScalarMap[str, str]
    def __init__(self, call_id: _Optional[int] = ..., failure: _Optional[_Union[_failure_pb2.Failure, _Mapping]] = ..., trailers: _Optional[_Mapping[str, str]] = ...) -> None: ...

class CallCancel(_message.Message):
    __slots__ = ("call_id",)
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    def __init__(self, call_id: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("call_id", "bytes")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    bytes: int
    def __init__(self, call_id: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    def __init__(self, nonce: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    def __init__(self, nonce: _Optional[int] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...
