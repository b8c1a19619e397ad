"""Requests that TrainingService refuses before acceptance, each with its field's path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import datum_pb2, tensor_pb2
from crucible_kit.errors import InvalidArgumentError, KitchenError, from_rpc_error
from crucible_kit.tensors import pack_tokens, to_tensor
from tests.engine.tiny import MAX_POSITIONS, VOCAB, random_data
from tests.engine.wire import CROSS_ENTROPY, Wire, to_proto


def _first(request: tp.ForwardBackwardRequest) -> datum_pb2.Datum:
    return request.data[1]


def _set_input(name: str, array: np.ndarray) -> Callable[[tp.ForwardBackwardRequest], None]:
    return lambda request: _first(request).loss_fn_inputs[name].CopyFrom(to_tensor(array))


def _set_tokens(tokens: list[int]) -> Callable[[tp.ForwardBackwardRequest], None]:
    def change(request: tp.ForwardBackwardRequest) -> None:
        _first(request).model_input.chunks[0].tokens_int32 = pack_tokens(tokens)

    return change


def _bfloat16_weights(request: tp.ForwardBackwardRequest) -> None:
    _first(request).loss_fn_inputs["weights"].CopyFrom(
        tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_BFLOAT16, shape=[4], dense=bytes(8))
    )


FOUR = np.ones(4, np.float32)
REFUSED: dict[str, tuple[Callable[[tp.ForwardBackwardRequest], object], str, str]] = {
    "no data": (lambda r: r.ClearField("data"), "data", "required"),
    "no loss": (lambda r: r.ClearField("loss_fn"), "loss_fn", "required"),
    "unknown loss": (lambda r: setattr(r.loss_fn, "name", "mse"), "loss_fn.name", "cross_entropy"),
    "unknown parameter": (
        lambda r: r.loss_fn.parameters.update({"beta": 1.0}),
        "loss_fn.parameters['beta']",
        "no parameters",
    ),
    "id too large": (_set_tokens([1, 2, VOCAB, 3]), "data[1].model_input.chunks[0].tokens_int32[2]", "0 to 127"),
    "id negative": (_set_tokens([1, -1, 2, 3]), "data[1].model_input.chunks[0].tokens_int32[1]", "0 to 127"),
    "no tokens": (_set_tokens([]), "data[1].model_input.chunks[0].tokens_int32", "at least one"),
    "odd bytes": (
        lambda r: setattr(_first(r).model_input.chunks[0], "tokens_int32", b"abc"),
        "data[1].model_input.chunks[0].tokens_int32",
        "multiple of 4",
    ),
    "too long": (_set_tokens([1] * (MAX_POSITIONS + 1)), "data[1].model_input", "at most 96"),
    "target too large": (
        _set_input("target_tokens", np.array([1, 2, 3, VOCAB])),
        "data[1].loss_fn_inputs['target_tokens'][3]",
        "outside the vocabulary",
    ),
    "float targets": (
        _set_input("target_tokens", FOUR),
        "data[1].loss_fn_inputs['target_tokens'].dtype",
        "int32 or int64",
    ),
    "short weights": (_set_input("weights", FOUR[:3]), "data[1].loss_fn_inputs['weights'].shape", "4 tokens"),
    "matrix weights": (_set_input("weights", FOUR[None]), "data[1].loss_fn_inputs['weights'].shape", "4 tokens"),
    "double weights": (_set_input("weights", np.ones(4)), "data[1].loss_fn_inputs['weights'].dtype", "float64"),
    "bfloat16 weights": (_bfloat16_weights, "data[1].loss_fn_inputs['weights'].dtype", "bfloat16"),
    "NaN weight": (
        _set_input("weights", np.array([1, np.nan, 1, 1], np.float32)),
        "data[1].loss_fn_inputs['weights'][1]",
        "finite",
    ),
    "infinite weight": (
        _set_input("weights", np.array([1, 1, 1, -np.inf], np.float32)),
        "data[1].loss_fn_inputs['weights'][3]",
        "finite",
    ),
    "missing input": (
        lambda r: _first(r).loss_fn_inputs.pop("weights"),
        "data[1].loss_fn_inputs['weights']",
        "target_tokens, weights",
    ),
    "extra input": (
        _set_input("advantages", FOUR),
        "data[1].loss_fn_inputs['advantages']",
        "not an input of this loss",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_bad_pass_is_refused_and_uses_no_number(wire: Wire, tiny_folder: Path, case: str) -> None:
    change, field, fix = REFUSED[case]
    session_id = await wire.open(tiny_folder)
    request = tp.ForwardBackwardRequest(
        session_id=session_id, sequence=1, data=[to_proto(d) for d in random_data([4, 4])], loss_fn=CROSS_ENTROPY
    )
    change(request)
    # straight to the socket: the kit's channel would refuse some of these on its own
    send = wire.channel._channel.unary_unary(
        "/crucible.port.training.v1.TrainingService/ForwardBackward",
        request_serializer=tp.ForwardBackwardRequest.SerializeToString,
        response_deserializer=tp.ForwardBackwardResponse.FromString,
    )
    error = await refusal(send, request)
    assert isinstance(error, InvalidArgumentError)
    assert [each.field for each in error.fields] == [field]
    assert fix in error.message
    assert (await wire.info(session_id)).next_sequence == 1


async def refusal(send, request) -> KitchenError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send(request)
    return from_rpc_error(caught.value)


@pytest.mark.parametrize(
    ("adam", "field"),
    [
        ({"learning_rate": -1e-3}, "adam.learning_rate"),
        ({"learning_rate": float("nan")}, "adam.learning_rate"),
        ({"learning_rate": float("inf")}, "adam.learning_rate"),
        ({"learning_rate": 1e-3, "beta1": 1.0}, "adam.beta1"),
        ({"learning_rate": 1e-3, "beta2": 1.0}, "adam.beta2"),
        ({"learning_rate": 1e-3, "eps": 0.0}, "adam.eps"),
        ({"learning_rate": 1e-3, "weight_decay": -0.1}, "adam.weight_decay"),
        ({"learning_rate": 1e-3, "grad_clip_norm": -1.0}, "adam.grad_clip_norm"),
    ],
)
async def test_bad_step_is_refused(wire: Wire, tiny_folder: Path, adam: dict[str, float], field: str) -> None:
    session_id = await wire.open(tiny_folder)
    request = tp.OptimStepRequest(session_id=session_id, sequence=1, adam=tp.AdamParams(**adam))
    with pytest.raises(InvalidArgumentError) as caught:
        await wire.training.OptimStep(request)
    assert caught.value.fields[0].field == field
