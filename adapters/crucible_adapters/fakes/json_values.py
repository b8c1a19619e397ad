"""A value that satisfies a JSON Schema; which one follows from a seed."""

from __future__ import annotations

from typing import Any

from crucible_adapters.fakes.seeded import digest, pick
from crucible_kit.errors import field_error

WORDS = (
    "amber basil cedar delta ember fennel ginger hazel indigo juniper kelp lemon maple nutmeg olive pepper quince rye "
    "saffron thyme"
).split()
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_TITLES = frozenset({"title", "description", "additionalProperties", "$schema", "strict", "default", "examples"})
_KEYS = frozenset(
    {"type", "properties", "required", "items", "enum", "const", "minimum", "maximum", "minItems", "maxItems"}
)
_MAX_DEPTH = 16
_MOST_ITEMS = 2


def value_of(schema: dict[str, Any], *seed: object, field: str, depth: int = 0) -> Any:
    """A value that the schema allows.

    Raises:
        InvalidArgumentError: FIELD_INVALID for a keyword that this fake does not know: it would not honour it.
    """
    unknown = sorted(set(schema) - _KEYS - _TITLES)
    if unknown:
        raise field_error(field, f"has the keyword {unknown[0]!r}; this model takes {', '.join(sorted(_KEYS))}")
    if depth > _MAX_DEPTH:
        raise field_error(field, f"is nested deeper than {_MAX_DEPTH}")
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return pick(_list(schema, "enum", field), *seed)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind:
        case "object":
            properties = schema.get("properties") or {}
            names = {*properties, *schema.get("required", ())}
            return {
                name: value_of(properties.get(name) or {}, *seed, name, field=f"{field}.{name}", depth=depth + 1)
                for name in sorted(names)
            }
        case "array":
            least, most = int(schema.get("minItems", 0)), int(schema.get("maxItems", 2**31))
            count = min(max(least, _MOST_ITEMS), most)
            items = schema.get("items") or {}
            return [value_of(items, *seed, i, field=f"{field}[]", depth=depth + 1) for i in range(count)]
        case "string":
            return pick(WORDS, *seed)
        case "boolean":
            return pick((False, True), *seed)
        case "null":
            return None
        case "integer":
            return int(_number(schema, seed))
        case "number":
            return float(_number(schema, seed))
    raise field_error(f"{field}.type", f"is {kind!r}; it must be one of {', '.join(_TYPES)}")


def _list(schema: dict[str, Any], key: str, field: str) -> list[Any]:
    values = schema[key]
    if not isinstance(values, list) or not values:
        raise field_error(f"{field}.{key}", "must be a list with at least one value")
    return values


def _number(schema: dict[str, Any], seed: tuple[object, ...]) -> float:
    low = float(schema.get("minimum", 0))
    high = float(schema.get("maximum", low + 100))
    # Whole numbers from the least whole one on, so that integers fit too.
    start = -(-low // 1)
    steps = int(high - start)
    return start + int(digest(*seed)[:12], 16) % (steps + 1) if steps >= 0 else low
