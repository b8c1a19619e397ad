"""Walks over every text and every run of bytes in a message, those inside google.protobuf.Any too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from google.protobuf import any_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from google.rpc import error_details_pb2

from crucible.type.v1 import constraints_pb2

# Its types must be in the pool for details to be readable.
_ERROR_DETAILS = error_details_pb2.DESCRIPTOR
_ANY = any_pb2.Any.DESCRIPTOR.full_name


class Place(NamedTuple):
    """Where a value stands.

    Attributes:
        field: its field; of a map, the map's.
        message: full name of the message around it.
        key: the key of a map's value; empty elsewhere.
        secret: whether its field, or one around it, is marked as a secret.
    """

    field: FieldDescriptor
    message: str
    key: str
    secret: bool


RewriteText = Callable[[Place, str], str]
RewriteData = Callable[[Place, bytes], bytes]
RewriteKey = Callable[[str], str]


def constraints_of(field: FieldDescriptor) -> constraints_pb2.FieldConstraints:
    """The (crucible.type.v1.field) option of a field; empty without one."""
    option: Any = constraints_pb2.field  # an extension's handle, which its stub calls a FieldDescriptor
    options = field.GetOptions()
    return options.Extensions[option] if options.HasExtension(option) else constraints_pb2.FieldConstraints()


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def map_value(field: FieldDescriptor) -> FieldDescriptor:
    """The field of a map's values."""
    assert field.message_type is not None
    return field.message_type.fields_by_name["value"]


def unpack(packed: any_pb2.Any) -> Message | None:
    """What an Any holds; None when its type is not known here or its bytes are no message of it."""
    try:
        descriptor: Descriptor = descriptor_pool.Default().FindMessageTypeByName(packed.TypeName())
        return message_factory.GetMessageClass(descriptor).FromString(packed.value)
    except (KeyError, DecodeError):
        return None


def rewrite_keys(message: Message, key: RewriteKey) -> None:
    """Replaces the keys of every map with texts as keys, in place."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.full_name == _ANY:
            continue
        if is_map(field) and field.message_type.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING:
            _rename(value, key, nested=map_value(field).message_type is not None)
        nested = map_value(field).message_type if is_map(field) else field.message_type
        if nested is not None:
            for child in value.values() if is_map(field) else value if field.is_repeated else [value]:
                rewrite_keys(child, key)


def _rename(entries: Any, key: RewriteKey, *, nested: bool) -> None:
    for old in list(entries):
        new = key(old)
        if new == old:
            continue
        if nested:
            entries[new].CopyFrom(entries[old])
        else:
            entries[new] = entries[old]
        del entries[old]


def rewrite(message: Message, text: RewriteText, data: RewriteData, *, secret: bool = False) -> None:
    """Replaces every set text and every set bytes of a message, in place, by what the functions make of them."""
    for field, value in message.ListFields():
        _rewrite_field(message, field, value, text, data, secret or constraints_of(field).secret)


def _rewrite_field(
    message: Message, field: FieldDescriptor, value: Any, text: RewriteText, data: RewriteData, secret: bool
) -> None:
    def changed(kind: FieldDescriptor, each: Any, key: str = "") -> Any:
        place = Place(field, message.DESCRIPTOR.full_name, key, secret)
        return text(place, each) if kind.type == FieldDescriptor.TYPE_STRING else data(place, each)

    kind = map_value(field) if is_map(field) else field
    nested = kind.message_type
    if nested is not None:
        children = value.values() if is_map(field) else value if field.is_repeated else [value]
        for child in children:
            if nested.full_name == _ANY:
                _rewrite_any(child, text, data, secret)
            else:
                rewrite(child, text, data, secret=secret)
    elif kind.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return
    elif is_map(field):
        for key in list(value):
            value[key] = changed(kind, value[key], str(key))
    elif field.is_repeated:
        value[:] = [changed(kind, each) for each in value]
    else:
        setattr(message, field.name, changed(kind, value))


def _rewrite_any(packed: any_pb2.Any, text: RewriteText, data: RewriteData, secret: bool) -> None:
    inner = unpack(packed)
    if inner is not None:
        rewrite(inner, text, data, secret=secret)
        packed.value = inner.SerializeToString(deterministic=True)


def drop_unreadable(message: Message) -> bool:
    """Removes what JSON can't show: fields that this build does not know, and Any of unknown types. Whether there was
    any.
    """
    lost = len(UnknownFieldSet(message)) > 0
    if lost:
        message.DiscardUnknownFields()
    for field, value in message.ListFields():
        nested = map_value(field).message_type if is_map(field) else field.message_type
        if nested is None:
            continue
        if nested.full_name == _ANY:
            lost = _drop_unreadable_any(message, field, value) or lost
            continue
        children = value.values() if is_map(field) else value if field.is_repeated else [value]
        for child in children:
            lost = drop_unreadable(child) or lost
    return lost


def _drop_unreadable_any(message: Message, field: FieldDescriptor, value: Any) -> bool:
    if not field.is_repeated:
        if unpack(value) is not None:
            return False
        message.ClearField(field.name)
        return True
    readable = [each for each in value if unpack(each) is not None]
    lost = len(readable) < len(value)
    if lost:
        del value[:]
        value.extend(readable)
    return lost
