"""Messages as trees of JSON: protojson, with long bytes kept in files of their own."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
from google.protobuf import descriptor_pool, json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from crucible_kit.cassettes.fields import is_map, map_value
from crucible_kit.chunks import atomic_file

INLINE_BYTES = 256
"""Longer bytes are kept beside the cassette, one file for each content."""
BLOB_FOLDER = "blobs"
_FILE_KEY = "$file"
_BLOB_NAME = re.compile(rf"{BLOB_FOLDER}/([0-9a-f]{{64}})")
_MENDED = (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_MESSAGE)
# protobuf writes the largest floats rounded up, and then refuses to read them.
_LARGE_FLOAT = 3.4e38
_STATUS_KEYS = {"code", "message", "reason", "details"}

Decoded = TypeVar("Decoded", bound=Message)
# Keeps bytes and returns the path to write in their place, or gives the bytes of such a path.
Keep = Callable[[bytes], str]
Load = Callable[[str], bytes]


class BlobFolder:
    """The folder of long bytes beside a cassette."""

    def __init__(self, cassette: Path) -> None:
        self._root = cassette.parent

    def keep(self, data: bytes) -> str:
        """Stores bytes, durable, and returns their path relative to the cassette."""
        path = f"{BLOB_FOLDER}/{hashlib.sha256(data).hexdigest()}"
        target = self._root / path
        if not target.exists():
            with atomic_file(target) as file:
                file.write(data)
        return path

    def load(self, path: str) -> bytes:
        """The bytes of a path. Raises ValueError when it is no such path, or its file is missing or has other bytes."""
        match = _BLOB_NAME.fullmatch(path)
        if match is None:
            raise ValueError(f"{path!r} is not {BLOB_FOLDER}/ and a SHA-256")
        try:
            data = (self._root / path).read_bytes()
        except OSError as error:
            raise ValueError(f"{path} can't be read ({error.strerror}): the folder belongs to the cassette") from error
        if hashlib.sha256(data).hexdigest() != match[1]:
            raise ValueError(f"{path} holds other bytes than its name says")
        return data


def to_tree(message: Message, keep: Keep) -> dict[str, Any]:
    """A message as JSON; `keep` takes its long bytes."""
    tree = json_format.MessageToDict(message)
    _mend(message, tree, keep)
    return tree


def _mend(message: Message, tree: Any, keep: Keep) -> None:
    """Puts paths in the places of long bytes, and exact numbers in those of floats that would not be read again."""
    for field, value in message.ListFields():
        kind = map_value(field) if is_map(field) else field
        if not _is_plain(kind.message_type) or kind.type not in _MENDED:
            continue
        name = field.json_name
        if is_map(field):
            slots = [(tree[name], _json_key(key), each) for key, each in value.items()]
        elif field.is_repeated:
            slots = [(tree[name], index, each) for index, each in enumerate(value)]
        else:
            slots = [(tree, name, value)]
        for holder, key, each in slots:
            if kind.type == FieldDescriptor.TYPE_MESSAGE:
                _mend(each, holder[key], keep)
            elif kind.type == FieldDescriptor.TYPE_FLOAT:
                if _LARGE_FLOAT < abs(each) < float("inf"):
                    holder[key] = each
            elif len(each) > INLINE_BYTES:
                holder[key] = {_FILE_KEY: keep(each)}


def _is_plain(descriptor: Descriptor | None) -> bool:
    """Whether it is no message, or one that protojson writes as an object of its fields."""
    return descriptor is None or not descriptor.full_name.startswith("google.protobuf.")


def _json_key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def from_tree(tree: Any, kind: type[Decoded], load: Load) -> Decoded:
    """The message of a tree. Raises ValueError with what does not fit."""
    if not isinstance(tree, dict):
        raise ValueError(f"a message of {kind.DESCRIPTOR.full_name} is a JSON object, not {type(tree).__name__}")
    try:
        return json_format.ParseDict(_inlined(tree, cast(Descriptor, kind.DESCRIPTOR), load), kind())
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error


def _inlined(tree: Any, descriptor: Descriptor, load: Load) -> Any:
    """The tree with files' bytes in their places."""
    if not isinstance(tree, dict) or not _is_plain(descriptor):
        return tree
    by_json_name = {field.json_name: field for field in descriptor.fields}
    done = {}
    for name, value in tree.items():
        field = by_json_name.get(name) or descriptor.fields_by_name.get(name)
        done[name] = value if field is None else _inlined_field(value, field, load)
    return done


def _inlined_field(value: Any, field: FieldDescriptor, load: Load) -> Any:
    if is_map(field):
        if not isinstance(value, dict):
            return value
        return {key: _inlined_value(each, map_value(field), load) for key, each in value.items()}
    if field.is_repeated and isinstance(value, list):
        return [_inlined_value(each, field, load) for each in value]
    return _inlined_value(value, field, load)


def _inlined_value(value: Any, kind: FieldDescriptor, load: Load) -> Any:
    if kind.message_type is not None:
        return _inlined(value, kind.message_type, load)
    if kind.type == FieldDescriptor.TYPE_BYTES and isinstance(value, dict):
        if set(value) != {_FILE_KEY}:
            raise ValueError(f"{kind.name}: bytes are base64 or an object with the one key {_FILE_KEY}")
        return base64.b64encode(load(value[_FILE_KEY])).decode()
    return value


def status_to_tree(status: status_pb2.Status, reason: str) -> dict[str, Any]:
    """A call's end as JSON; empty parts are left out.

    Args:
        reason: of its ErrorInfo or of the crucible-reason trailer.
    """
    tree: dict[str, Any] = {"code": code_name(status.code)}
    if status.message:
        tree["message"] = status.message
    if reason:
        tree["reason"] = reason
    if status.details:
        tree["details"] = json_format.MessageToDict(status)["details"]
    return tree


def status_from_tree(tree: Any) -> tuple[status_pb2.Status, str]:
    """The status and the reason of a tree. Raises ValueError with what does not fit."""
    if not isinstance(tree, dict) or not tree.keys() <= _STATUS_KEYS:
        raise ValueError(f"a status is an object with the keys {', '.join(sorted(_STATUS_KEYS))}")
    codes = {each.name: each.value[0] for each in grpc.StatusCode}
    if tree.get("code") not in codes:
        raise ValueError(f"code is {tree.get('code')!r}, must be the name of a gRPC code, such as NOT_FOUND")
    body = {"code": codes[tree["code"]], "message": tree.get("message", ""), "details": tree.get("details", [])}
    reason = tree.get("reason", "")
    if not isinstance(reason, str):
        raise ValueError(f"reason is {reason!r}, must be a text")
    try:
        return json_format.ParseDict(body, status_pb2.Status(), descriptor_pool=descriptor_pool.Default()), reason
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error


def code_name(code: int) -> str:
    """Name of a gRPC code's number; UNKNOWN for one that is none."""
    return next((each.name for each in grpc.StatusCode if each.value[0] == code), grpc.StatusCode.UNKNOWN.name)


def detail_of(status: status_pb2.Status, kind: type[Decoded]) -> Decoded | None:
    """The first detail of a kind that can be read."""
    for packed in status.details:
        if packed.TypeName() == kind.DESCRIPTOR.full_name:
            try:
                return kind.FromString(packed.value)
            except DecodeError:
                return None  # a peer wrote it
    return None


def reason_of(status: status_pb2.Status) -> str:
    """The reason in a status' ErrorInfo; empty without one."""
    info = detail_of(status, error_details_pb2.ErrorInfo)
    return "" if info is None else info.reason
