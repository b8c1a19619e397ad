"""Schedules, seeds, data order, tensors, settings: pinned values and independent formulas."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field

from crucible.type.v1 import tensor_pb2
from crucible_kit.determinism import derive_seed, epoch_order
from crucible_kit.errors import InvalidArgumentError
from crucible_kit.schedules import learning_rate
from crucible_kit.settings import parse_settings
from crucible_kit.tensors import (
    from_tensor,
    pack_floats,
    pack_tokens,
    to_tensor,
    unpack_floats,
    unpack_tokens,
)

# By hand: peak 8, 2 warmup steps of 6; after them n = 4 steps, i = 0..3.
SCHEDULES = {
    ("constant", 0.0): [4, 8, 8, 8, 8, 8],
    ("linear", 0.0): [4, 8, 8, 6, 4, 2],
    ("linear", 0.5): [4, 8, 8, 7, 6, 5],
    ("cosine", 0.0): [4, 8, 8, 6.828427124746190, 4, 1.171572875253810],
    ("cosine", 0.5): [4, 8, 8, 7.414213562373095, 6, 4.585786437626905],
}


@pytest.mark.parametrize(("schedule", "final"), SCHEDULES)
def test_schedules(schedule, final: float) -> None:
    rates = [
        learning_rate(step, total_steps=6, peak=8, schedule=schedule, warmup_steps=2, final_fraction=final)
        for step in range(6)
    ]
    assert rates == pytest.approx(SCHEDULES[schedule, final], rel=1e-14)


@pytest.mark.parametrize("step", [-1, 6, 7])
def test_a_schedule_is_not_asked_past_its_plan(step: int) -> None:
    with pytest.raises(ValueError, match="outside the plan"):
        learning_rate(step, total_steps=6, peak=1, schedule="linear")


def test_warmup_as_long_as_the_plan() -> None:
    assert [learning_rate(k, total_steps=2, peak=1, schedule="linear", warmup_steps=2) for k in (0, 1)] == [0.5, 1]


def test_derived_seeds_are_pinned() -> None:
    """Bytes of runs hang on these: printf '7\\037str:evaluate\\037int:3' | sha256sum, first 8 bytes, >> 1."""
    assert derive_seed(7, "evaluate", 3) == 327565739285648465
    assert derive_seed(7, "evaluate", 3) != derive_seed(7, "evaluate", "3")
    assert derive_seed(7, "a", "b") != derive_seed(7, "ab")
    assert 0 <= derive_seed(0) < 2**63


def test_the_order_of_an_epoch_is_pinned() -> None:
    assert epoch_order(3, 1, 6).tolist() == [1, 2, 0, 4, 5, 3]
    assert sorted(epoch_order(3, 2, 100).tolist()) == list(range(100))
    assert epoch_order(3, 2, 100).tolist() != epoch_order(3, 3, 100).tolist()


# dtype -> wire type and the bytes of [1, 0] by struct's own formats.
DTYPES = {
    "float32": (tensor_pb2.D_TYPE_FLOAT32, struct.pack("<2f", 1, 0)),
    "float16": (tensor_pb2.D_TYPE_FLOAT16, struct.pack("<2e", 1, 0)),
    "float64": (tensor_pb2.D_TYPE_FLOAT64, struct.pack("<2d", 1, 0)),
    "int32": (tensor_pb2.D_TYPE_INT32, struct.pack("<2i", 1, 0)),
    "int64": (tensor_pb2.D_TYPE_INT64, struct.pack("<2q", 1, 0)),
    "uint8": (tensor_pb2.D_TYPE_UINT8, b"\1\0"),
    "bool": (tensor_pb2.D_TYPE_BOOL, b"\1\0"),
}


@pytest.mark.parametrize("name", DTYPES)
def test_tensors_of_each_type(name: str) -> None:
    wire, data = DTYPES[name]
    tensor = to_tensor(np.array([[1, 0]], dtype=name))
    assert (tensor.dtype, list(tensor.shape), tensor.dense) == (wire, [1, 2], data)
    back = from_tensor(tensor)
    assert (back.dtype, back.tolist()) == (np.dtype(name), [[1, 0]])
    assert not back.flags.writeable


def test_bfloat16_travels_as_its_bits() -> None:
    upper_half_of_one = struct.pack("<f", 1)[2:]
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_BFLOAT16, shape=[1], dense=upper_half_of_one)
    assert from_tensor(tensor).tolist() == [0x3F80]


def test_layouts_other_than_row_major_little_endian_are_converted() -> None:
    array = np.array([[1, 2], [3, 4]], dtype=">i4").T
    assert to_tensor(array).dense == struct.pack("<4i", 1, 3, 2, 4)


def test_scalars_and_empty_tensors() -> None:
    assert from_tensor(to_tensor(np.array(2.5, dtype="f4"))).shape == ()
    assert from_tensor(to_tensor(np.zeros((0, 3), dtype="f4"))).shape == (0, 3)


def test_a_type_without_a_wire_form() -> None:
    with pytest.raises(TypeError, match="complex64"):
        to_tensor(np.zeros(1, dtype="complex64"))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (tensor_pb2.Tensor(shape=[1], dense=b"\0"), "FIELD_INVALID"),
        (tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_UINT8, shape=[1]), "FIELD_INVALID"),
        (tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_INT32, shape=[2], dense=b"\0" * 7), "TENSOR_SIZE_MISMATCH"),
        (tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_INT32, shape=[], dense=b""), "TENSOR_SIZE_MISMATCH"),
        (tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_UINT8, shape=[-1, -1], dense=b"\0"), "FIELD_INVALID"),
    ],
)
def test_tensors_that_are_refused(tensor: tensor_pb2.Tensor, reason: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        from_tensor(tensor, field="data[0]")
    assert caught.value.reason == reason
    assert caught.value.metadata["field"].startswith("data[0]")


def test_packed_tokens_and_floats() -> None:
    assert pack_tokens([1, -2]) == struct.pack("<2i", 1, -2)
    assert unpack_tokens(struct.pack("<2i", 1, -2)).tolist() == [1, -2]
    assert pack_floats([0.5]) == struct.pack("<f", 0.5)
    assert unpack_floats(struct.pack("<f", 0.5)).tolist() == [0.5]
    for unpack in (unpack_tokens, unpack_floats):
        with pytest.raises(InvalidArgumentError, match="5 bytes"):
            unpack(b"12345")


class Nested(BaseModel):
    model_config = ConfigDict(extra="forbid")
    depth: int = 1


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    learning_rate: float = Field(gt=0)
    nested: Nested = Nested()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"learning_rte": 1, "learning_rate": 1}, {"config.learning_rte": "did you mean learning_rate?"}),
        ({"zzz": 1, "learning_rate": 1}, {"config.zzz": "the keys are learning_rate, nested"}),
        ({}, {"config.learning_rate": "required, but not given"}),
        ({"learning_rate": -1}, {"config.learning_rate": "(got -1)"}),
        ({"learning_rate": 1, "nested": {"dept": 1}}, {"config.nested.dept": "unknown key"}),
        (
            {"learning_rate": "fast", "nested": {"depth": "x"}},
            {"config.learning_rate": "(got 'fast')", "config.nested.depth": "(got 'x')"},
        ),
    ],
)
def test_settings_errors_name_key_value_and_fix(values: dict, expected: dict[str, str]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_settings(Settings, values, where="config")
    found = {each.field: each.description for each in caught.value.fields}
    assert caught.value.reason == "CONFIG_INVALID"
    assert set(found) == set(expected)
    assert all(said in found[field] for field, said in expected.items())
