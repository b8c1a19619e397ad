"""Descriptors written as proto source, for people."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

from crucible_kit.errors import NotFoundError

_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def find_symbol(pool: descriptor_pool.DescriptorPool, name: str) -> Any:
    """The descriptor of a service, method, message or enum. Raises NOT_FOUND SYMBOL_NOT_FOUND."""
    for find in (pool.FindServiceByName, pool.FindMessageTypeByName, pool.FindEnumTypeByName, pool.FindMethodByName):
        try:
            return find(name)
        except KeyError:
            continue
    raise NotFoundError(f"{name} is no service, method, message or enum", reason="SYMBOL_NOT_FOUND")


def proto_source(descriptor: Any) -> str:
    """The proto source of a descriptor, without comments."""
    if isinstance(descriptor, ServiceDescriptor):
        lines = [f"  {_method(each)}" for each in descriptor.methods]
        return "\n".join([f"service {descriptor.full_name} {{", *lines, "}"])
    if isinstance(descriptor, MethodDescriptor):
        return _method(descriptor)
    if isinstance(descriptor, EnumDescriptor):
        return "\n".join(_enum(descriptor, descriptor.full_name, ""))
    return "\n".join(_message(descriptor, descriptor.full_name, ""))


def _method(method: MethodDescriptor) -> str:
    request = f"{'stream ' if method.client_streaming else ''}{method.input_type.full_name}"
    response = f"{'stream ' if method.server_streaming else ''}{method.output_type.full_name}"
    return f"rpc {method.name}({request}) returns ({response});"


def _message(message: Descriptor, name: str, indent: str) -> list[str]:
    lines = [f"{indent}message {name} {{"]
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            lines += _message(nested, nested.name, f"{indent}  ")
    for enum in message.enum_types:
        lines += _enum(enum, enum.name, f"{indent}  ")
    written: set[str] = set()
    for field in message.fields:
        oneof = field.containing_oneof
        if oneof is None or _is_optional(field):
            lines.append(f"{indent}  {_field(field)}")
        elif oneof.name not in written:
            written.add(oneof.name)
            members = [f"{indent}    {_field(each)}" for each in oneof.fields]
            lines += [f"{indent}  oneof {oneof.name} {{", *members, f"{indent}  }}"]
    return [*lines, f"{indent}}}"]


def _enum(enum: EnumDescriptor, name: str, indent: str) -> list[str]:
    values = [f"{indent}  {each.name} = {each.number};" for each in enum.values]
    return [f"{indent}enum {name} {{", *values, f"{indent}}}"]


def _is_optional(field: FieldDescriptor) -> bool:
    """Whether it is a field with the word optional, which is a oneof of one behind the scenes."""
    oneof = field.containing_oneof
    return oneof is not None and len(oneof.fields) == 1 and oneof.name == f"_{field.name}"


def _field(field: FieldDescriptor) -> str:
    label = "optional " if _is_optional(field) else "repeated " if field.is_repeated else ""
    kind = _type(field)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        label, kind = "", f"map<{_type(entry['key'])}, {_type(entry['value'])}>"
    return f"{label}{kind} {field.name} = {field.number};"


def _type(field: FieldDescriptor) -> str:
    if field.message_type is not None:
        return field.message_type.full_name
    if field.enum_type is not None:
        return field.enum_type.full_name
    return _SCALARS[field.type]
