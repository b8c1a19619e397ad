"""Python objects as values of the Python bridge, and back. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible.type.v1 import tensor_pb2
from crucible_kit.errors import InvalidArgumentError, KitchenError
from crucible_kit.tensors import from_tensor, to_tensor

MAX_DEPTH = 24
_INT64 = range(-(2**63), 2**63)
# Their decimal form has at most 4,096 digits.
_MAX_BITS = 13_600


class NotSerialisableError(ValueError):
    """A Python object that is no value; the message says which part of it, and why."""


def to_value(obj: Any, *, path: str = "result", depth: int = 0) -> pb.Value:
    """A Python object as a value: None, bool, int, float, str, bytes, numpy arrays, references to session objects;
    lists, tuples and dicts of them.

    Raises:
        NotSerialisableError: it is, or holds, something else.
    """
    if depth > MAX_DEPTH:
        raise NotSerialisableError(f"{path} is nested deeper than {MAX_DEPTH}")
    match obj:
        case None:
            return pb.Value(none="NULL_VALUE")
        case bool() | np.bool_():
            return pb.Value(boolean=bool(obj))
        case int() | np.integer():
            return _integer(int(obj), path)
        case float() | np.floating():
            return pb.Value(real=float(obj))
        case str():
            return pb.Value(text=_utf8(obj, path))
        case bytes() | bytearray():
            return pb.Value(data=bytes(obj))
        case np.ndarray():
            return pb.Value(tensor=_tensor(obj, path))
        case list() | tuple():
            values = [to_value(each, path=f"{path}[{place}]", depth=depth + 1) for place, each in enumerate(obj)]
            return pb.Value(list=pb.ListValue(values=values))
        case pb.ObjectRef():
            return pb.Value(ref=obj)
        case dict():
            return pb.Value(dict=_dict(obj, path, depth))
    raise NotSerialisableError(f"{path} is a {class_name(obj)}")


def from_value(value: pb.Value, *, path: str, resolve: Callable[[pb.ObjectRef], Any]) -> Any:
    """The Python object of a value.

    Args:
        path: of the value in the request, for errors.
        resolve: the object that a reference names; raises a KitchenError for one that it can't name.

    Raises:
        InvalidArgumentError: ARGUMENT_UNPARSEABLE with the path.
        KitchenError: what `resolve` raises.
    """
    return _object(value, path, resolve, 0)


def _object(value: pb.Value, path: str, resolve: Callable[[pb.ObjectRef], Any], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise unparseable(path, f"is nested deeper than {MAX_DEPTH}")
    match value.WhichOneof("kind"):
        case None:
            raise unparseable(path, "is empty: set the field of its type, `none` for None")
        case "none":
            return None
        case "tensor":
            return _array(value.tensor, path)
        case "big_integer":
            if not value.big_integer:
                raise unparseable(path, "is an int without digits")
            return int(value.big_integer)
        case "list":
            values = enumerate(value.list.values)
            return [_object(each, f"{path}[{place}]", resolve, depth + 1) for place, each in values]
        case "dict":
            values = value.dict.values
            return {key: _object(values[key], f"{path}[{key!r}]", resolve, depth + 1) for key in sorted(values)}
        case "ref":
            return resolve(value.ref)
        case plain:
            return getattr(value, plain)


def unparseable(argument: str, problem: str) -> InvalidArgumentError:
    """The ARGUMENT_UNPARSEABLE of an argument, by its path such as args[0]."""
    return InvalidArgumentError(
        f"{argument}: {problem}", reason="ARGUMENT_UNPARSEABLE", metadata={"argument": argument, "field": argument}
    )


def class_name(obj: Any) -> str:
    """The class of an object with its module, such as collections.OrderedDict."""
    kind = type(obj)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _integer(number: int, path: str) -> pb.Value:
    if number in _INT64:
        return pb.Value(integer=number)
    if number.bit_length() > _MAX_BITS:
        raise NotSerialisableError(f"{path} is an int of {number.bit_length()} bits, at most {_MAX_BITS} travel")
    return pb.Value(big_integer=str(number))


def _utf8(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NotSerialisableError(f"{path} is a str with a lone surrogate") from error
    return text


def _tensor(array: np.ndarray, path: str) -> tensor_pb2.Tensor:
    try:
        return to_tensor(array)
    except TypeError as error:
        raise NotSerialisableError(f"{path} is an array of {array.dtype}") from error


def _dict(obj: dict[Any, Any], path: str, depth: int) -> pb.DictValue:
    value = pb.DictValue()
    for key, each in obj.items():
        if not isinstance(key, str):
            raise NotSerialisableError(f"{path} is a dict with a {class_name(key)} as a key")
        value.values[_utf8(key, path)].CopyFrom(to_value(each, path=f"{path}[{key!r}]", depth=depth + 1))
    return value


def _array(tensor: tensor_pb2.Tensor, path: str) -> np.ndarray:
    if tensor.dtype == tensor_pb2.D_TYPE_BFLOAT16:
        raise unparseable(path, "is bfloat16, which numpy lacks: send float32")
    try:
        # A copy: functions may write to their arguments.
        return from_tensor(tensor, field=path).copy()
    except KitchenError as error:
        raise unparseable(path, error.message.removeprefix(f"{path}: ")) from error
