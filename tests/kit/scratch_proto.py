"""Messages made for the tests of constraints: one field for each rule, in the pool that the options live in."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from crucible.type.v1 import constraints_pb2

Field = descriptor_pb2.FieldDescriptorProto
Rule = constraints_pb2.FieldConstraints
_PACKAGE = "crucible.scratch.v1"


def _field(message: Any, name: str, kind: int, *, repeated: bool = False, of: str = "", **rule: Any) -> Any:
    field = message.field.add(
        name=name,
        number=len(message.field) + 1,
        type=kind,
        label=Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL,
    )
    if of:
        field.type_name = f".{_PACKAGE}.{of}"
    if rule:
        field.options.Extensions[constraints_pb2.field].CopyFrom(Rule(**rule))
    return field


def _map(message: Any, name: str, value_kind: int, *, of: str = "", **rule: Any) -> None:
    entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
    entry.options.map_entry = True
    _field(entry, "key", Field.TYPE_STRING)
    _field(entry, "value", value_kind, of=of)
    _field(message, name, Field.TYPE_MESSAGE, repeated=True, of=f"{message.name}.{entry.name}", **rule)


def _optional(message: Any, name: str, kind: int, **rule: Any) -> None:
    field = _field(message, name, kind, **rule)
    field.proto3_optional = True
    field.oneof_index = len(message.oneof_decl)
    message.oneof_decl.add(name=f"_{name}")


def _build() -> tuple[type, type]:
    file = descriptor_pb2.FileDescriptorProto(
        name="crucible/scratch/v1/scratch.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=["crucible/type/v1/constraints.proto"],
    )
    colour = file.enum_type.add(name="Colour")
    colour.value.add(name="COLOUR_UNSPECIFIED", number=0)
    colour.value.add(name="COLOUR_RED", number=1)

    inner = file.message_type.add(name="Inner")
    _field(inner, "name", Field.TYPE_STRING, required=True)
    _field(inner, "again", Field.TYPE_MESSAGE, of="Inner")

    outer = file.message_type.add(name="Outer")
    outer.oneof_decl.add(name="choice")
    _field(outer, "word", Field.TYPE_STRING, max_len=3).oneof_index = 0
    _field(outer, "amount", Field.TYPE_INT64, min=2, max=9).oneof_index = 0
    _field(outer, "plain", Field.TYPE_STRING)
    _field(outer, "needed_number", Field.TYPE_INT32, required=True)
    _field(outer, "short_text", Field.TYPE_STRING, max_len=3)
    _field(outer, "short_bytes", Field.TYPE_BYTES, max_len=3)
    _field(outer, "free_bytes", Field.TYPE_BYTES)
    _field(outer, "fraction", Field.TYPE_DOUBLE, min=0, max=0.5)
    _field(outer, "seed", Field.TYPE_INT64, min=0, max=4294967295)
    _field(outer, "positive", Field.TYPE_FLOAT, min=0)
    _field(outer, "patterned", Field.TYPE_STRING, pattern="a+b")
    for name in ("identifier", "uuid", "sha256", "uri"):
        _field(outer, f"as_{name}", Field.TYPE_STRING, format=f"FORMAT_{name.upper()}")
    _field(outer, "colour", Field.TYPE_ENUM, of="Colour")
    _field(outer, "colours", Field.TYPE_ENUM, repeated=True, of="Colour")
    _field(outer, "numbers", Field.TYPE_INT32, repeated=True, max_items=2, min=0)
    _field(outer, "needed_words", Field.TYPE_STRING, repeated=True, required=True, max_len=3)
    _field(outer, "child", Field.TYPE_MESSAGE, of="Inner")
    _field(outer, "children", Field.TYPE_MESSAGE, repeated=True, of="Inner")
    _field(outer, "needed_child", Field.TYPE_MESSAGE, of="Inner", required=True)
    _map(outer, "labels", Field.TYPE_STRING, max_items=2, max_len=3)
    _map(outer, "by_name", Field.TYPE_MESSAGE, of="Inner")
    _optional(outer, "maybe", Field.TYPE_INT32, min=1)

    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    kinds = message_factory.GetMessageClassesForFiles([file.name], pool)
    return kinds[f"{_PACKAGE}.Outer"], kinds[f"{_PACKAGE}.Inner"]


Outer, Inner = _build()
