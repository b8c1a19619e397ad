"""Tensors and token ids between NumPy and the wire. Little-endian, row-major, no padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from crucible.type.v1 import tensor_pb2
from crucible_kit.errors import InvalidArgumentError, field_error

_NUMPY_TYPES = {
    tensor_pb2.D_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.D_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.D_TYPE_FLOAT64: np.dtype("<f8"),
    tensor_pb2.D_TYPE_INT32: np.dtype("<i4"),
    tensor_pb2.D_TYPE_INT64: np.dtype("<i8"),
    tensor_pb2.D_TYPE_UINT8: np.dtype("u1"),
    tensor_pb2.D_TYPE_BOOL: np.dtype("?"),
    # NumPy has no bfloat16: its bits travel as uint16, and the reader that has one views them.
    tensor_pb2.D_TYPE_BFLOAT16: np.dtype("<u2"),
}
_DTYPES = {numpy: wire for wire, numpy in _NUMPY_TYPES.items() if wire != tensor_pb2.D_TYPE_BFLOAT16}


def to_tensor(array: np.ndarray) -> tensor_pb2.Tensor:
    """A dense tensor with the array's type and shape. Raises TypeError for a type that the wire lacks."""
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _DTYPES:
        raise TypeError(f"no wire type for {array.dtype}")
    return tensor_pb2.Tensor(
        dtype=_DTYPES[dtype], shape=array.shape, dense=np.ascontiguousarray(array, dtype=dtype).tobytes()
    )


def from_tensor(tensor: tensor_pb2.Tensor, *, field: str = "tensor") -> np.ndarray:
    """The array of a dense tensor, read-only, sharing its bytes; bfloat16 comes as its uint16 bits.

    Raises INVALID_ARGUMENT: FIELD_INVALID for an unknown dtype or a tensor that is not dense, TENSOR_SIZE_MISMATCH when
    bytes and shape disagree. `field` is the path that the message names.
    """
    dtype = _NUMPY_TYPES.get(tensor.dtype)
    if dtype is None:
        raise field_error(f"{field}.dtype", "not given or unknown: set one of the D_TYPE_ values")
    if tensor.WhichOneof("storage") != "dense":
        raise field_error(field, f"is stored as {tensor.WhichOneof('storage')}; send the elements in `dense`")
    data = tensor.dense  # each access copies
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape):
        raise field_error(f"{field}.shape", f"{list(shape)} has a negative dimension")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise InvalidArgumentError(
            f"{field}: shape {list(shape)} needs {expected} bytes of {dtype}, got {len(data)}",
            reason="TENSOR_SIZE_MISMATCH",
            metadata={"field": field, "expected_bytes": expected, "actual_bytes": len(data)},
        )
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def pack_tokens(tokens: Sequence[int] | np.ndarray) -> bytes:
    """Token ids as little-endian int32."""
    return np.asarray(tokens, dtype="<i4").tobytes()


def unpack_tokens(data: bytes, *, field: str = "tokens_int32") -> np.ndarray:
    """Token ids of shape [n], read-only int32. Raises INVALID_ARGUMENT when the length is no multiple of 4."""
    if len(data) % 4:
        raise field_error(field, f"has {len(data)} bytes, not a multiple of 4: send little-endian int32")
    return np.frombuffer(data, dtype="<i4")


def pack_floats(values: Sequence[float] | np.ndarray) -> bytes:
    """Numbers as little-endian float32."""
    return np.asarray(values, dtype="<f4").tobytes()


def unpack_floats(data: bytes, *, field: str = "logprobs_float32") -> np.ndarray:
    """Numbers of shape [n], read-only float32. Raises INVALID_ARGUMENT when the length is no multiple of 4."""
    if len(data) % 4:
        raise field_error(field, f"has {len(data)} bytes, not a multiple of 4: send little-endian float32")
    return np.frombuffer(data, dtype="<f4")
