"""Requests that are refused before acceptance, each with its field's path, and that nothing else notices."""

from __future__ import annotations

import math
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import duration_pb2

from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import datum_pb2, tensor_pb2
from crucible_kit.errors import InvalidArgumentError, KitchenError, NotFoundError, from_rpc_error
from crucible_kit.tensors import pack_tokens, to_tensor
from tests.engine.tiny import MAX_POSITIONS, VOCAB, random_data
from tests.engine.wire import CROSS_ENTROPY, Wire, sample_request, serve, to_proto


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


LORA_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rank 0": ({"rank": 0}, "lora.rank"),
    "rank below 0": ({"rank": -1}, "lora.rank"),
    "rank beyond the limit": ({"rank": 9}, "lora.rank"),
    "rank beyond the contract": ({"rank": 5000}, "lora.rank"),
    "alpha 0": ({"rank": 2, "alpha": 0.0}, "lora.alpha"),
    "alpha below 0": ({"rank": 2, "alpha": -3.0}, "lora.alpha"),
    "alpha NaN": ({"rank": 2, "alpha": math.nan}, "lora.alpha"),
    "alpha infinite": ({"rank": 2, "alpha": math.inf}, "lora.alpha"),
    "names beside groups": ({"rank": 2, "train_mlp": True, "target_modules": ["q_proj"]}, "lora.train_mlp"),
    "nothing to adapt": ({"rank": 2, "train_mlp": False, "train_attention": False}, "lora"),
    "layer that is not there": ({"rank": 2, "target_modules": ["q_proj", "w_proj"]}, "lora.target_modules[1]"),
    "pattern for a name": ({"rank": 2, "target_modules": [".*_proj"]}, "lora.target_modules[0]"),
    "name twice": ({"rank": 2, "target_modules": ["q_proj", "q_proj"]}, "lora.target_modules[1]"),
}
BASE_REFUSED: dict[str, tuple[str, str]] = {
    "no model there": ("/nowhere/at/all", "MODEL_NOT_FOUND"),
    "no path": ("owner/name", "FIELD_INVALID"),
    "nothing": ("", "FIELD_INVALID"),
    "zero byte": ("/model\0", "FIELD_INVALID"),
    "too long a name": ("/" + "m" * 300, "FIELD_INVALID"),
    "no model folder": ("/", "FIELD_INVALID"),
}
SAMPLE_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "empty prompt": ({"prompt": []}, "prompt_tokens_int32"),
    "id too large": ({"prompt": [1, VOCAB]}, "prompt_tokens_int32[1]"),
    "id negative": ({"prompt": [-1]}, "prompt_tokens_int32[0]"),
    "temperature NaN": ({"temperature": math.nan}, "params.temperature"),
    "no samples": ({"num_samples": 0}, "num_samples"),
}


async def refused(call: Awaitable[Any], label: str) -> KitchenError:
    """What a call is refused with; the label tells which case of a loop was not."""
    try:
        await call
    except KitchenError as error:
        return error
    pytest.fail(f"{label} was not refused")


async def send_all_refusals(wire: Wire, folder: Path, session_id: str, sampling_id: str) -> None:
    """Every refusal there is, against one session whose next number is 2."""
    for label, (change, field, _) in REFUSED.items():
        for kind, call in ((tp.ForwardRequest, "Forward"), (tp.ForwardBackwardRequest, "ForwardBackward")):
            data = [to_proto(d) for d in random_data([4, 4])]
            request = kind(session_id=session_id, sequence=2, data=data, loss_fn=CROSS_ENTROPY)
            change(request)  # type: ignore[arg-type]
            error = await refused(getattr(wire.training, call)(request), f"{call} with {label}")
            assert (error.fields[0].field, error.reason) == (field, "FIELD_INVALID"), label
    for label, (fields, field) in LORA_REFUSED.items():
        error = await refused(wire.open(folder, lora=tp.LoraConfig(**fields)), label)
        assert (error.fields[0].field, error.reason) == (field, "FIELD_INVALID"), label
    for lora in (None, tp.LoraConfig(rank=2)):
        for label, (base_model, reason) in BASE_REFUSED.items():
            request = tp.CreateTrainingSessionRequest(request_id=str(uuid.uuid4()), base_model=base_model, lora=lora)
            error = await refused(wire.training.CreateTrainingSession(request), label)
            assert error.reason == reason, label
            assert isinstance(error, NotFoundError if reason == "MODEL_NOT_FOUND" else InvalidArgumentError), label
    for label, (fields, field) in SAMPLE_REFUSED.items():
        request = sample_request(sampling_id, 1, **{"prompt": [3, 4], **fields})
        error = await refused(wire.sampling.Sample(request), label)
        assert (error.fields[0].field, error.reason) == (field, "FIELD_INVALID"), label


async def test_nobody_notices_what_was_refused(transport: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """Between two halves of a batch: gradients, weights and moments of three sessions end with the same bytes."""
    ends: list[list[dict[str, str]]] = []
    for refusals in (False, True):
        async with serve(tmp_path / str(refusals), transport=transport, max_lora_rank=8) as (engine, wire):
            opened = [
                await wire.open(tiny_folder, lora=tp.LoraConfig(rank=4), seed=1),
                await wire.open(tiny_folder, lora=tp.LoraConfig(rank=2, target_modules=["q_proj"]), seed=2),
                await wire.open(tiny_folder),
            ]
            for session_id in opened:
                await wire.send_pass(session_id, 1, random_data([7], seed=1))
            if refusals:
                for session_id in (opened[0], opened[2]):
                    live = await wire.open_sampling(training_session_id=session_id)
                    await send_all_refusals(wire, tiny_folder, session_id, live)
                    assert (await wire.info(session_id)).next_sequence == 2
                assert set(engine.training._records) == set(opened)
            saved = []
            for number, session_id in enumerate(opened):
                await wire.train(session_id, 2, random_data([5, 9], seed=2))
                checkpoint = await wire.save(session_id, 4, f"session-{number}")
                saved.append({file.path: file.sha256 for file in checkpoint.files})
            ends.append(saved)
    assert ends[0] == ends[1]
    assert len({str(each) for each in ends[0]}) == 3


@pytest.mark.parametrize("wait", [{"seconds": 10**14}, {"seconds": -(10**14)}, {"nanos": -5}])
async def test_odd_waits_are_cut(wire: Wire, tiny_folder: Path, wait: dict[str, int]) -> None:
    session_id = await wire.open(tiny_folder)
    operation = await wire.send_pass(session_id, 1, random_data([4]))
    await wire.result(session_id, operation)
    request = tp.AwaitOperationRequest(
        session_id=session_id, operation_id=operation.id, wait=duration_pb2.Duration(**wait)
    )
    assert (await wire.training.AwaitOperation(request)).WhichOneof("result") == "forward"
