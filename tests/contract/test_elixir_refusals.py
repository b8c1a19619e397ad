"""What the Elixir adapter's TrainingService refuses before acceptance, with the field's path, over a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from crucible.port.training.v1 import training_pb2 as tp
from crucible.port.training.v1 import training_pb2_grpc
from crucible.type.v1 import tensor_pb2
from crucible_kit.channel import RemoteChannel, connect
from crucible_kit.errors import InvalidArgumentError, KitchenError, NotFoundError, UnimplementedError, from_rpc_error
from crucible_kit.tensors import pack_tokens, to_tensor
from crucible_kit.training import TrainingSession
from tests.contract.elixir import ElixirAdapter, needs_elixir
from tests.contract.elixir_data import CROSS_ENTROPY, MODEL, random_data, to_proto

pytestmark = needs_elixir


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ElixirAdapter]:
    running = ElixirAdapter(tmp_path_factory.mktemp("elixir"), listen="127.0.0.1:0")
    yield running
    running.end()


@pytest.fixture
async def channel(adapter: ElixirAdapter) -> AsyncIterator[RemoteChannel]:
    opened = connect(adapter.address)
    yield opened
    await opened.close()


@pytest.fixture
def stub(channel: RemoteChannel) -> Any:
    return training_pb2_grpc.TrainingServiceStub(channel)  # pyright: ignore[reportArgumentType]


FOUR = np.ones(4, np.float32)


def _input(name: str, array: np.ndarray) -> Callable[[tp.ForwardBackwardRequest], None]:
    return lambda request: request.data[1].loss_fn_inputs[name].CopyFrom(to_tensor(array))


def _tokens(data: bytes) -> Callable[[tp.ForwardBackwardRequest], None]:
    return lambda request: setattr(request.data[1].model_input.chunks[0], "tokens_int32", data)


REFUSED: dict[str, tuple[Callable[[tp.ForwardBackwardRequest], object], str, str]] = {
    "no data": (lambda r: r.ClearField("data"), "data", "required"),
    "no sequence": (lambda r: r.ClearField("sequence"), "sequence", "at least 1"),
    "unknown loss": (lambda r: setattr(r.loss_fn, "name", "mse"), "loss_fn.name", "cross_entropy"),
    "parameter": (lambda r: r.loss_fn.parameters.update(a=1.0), "loss_fn.parameters['a']", "no parameters"),
    "id too large": (
        _tokens(pack_tokens([1, 64, 2, 3])),
        "data[1].model_input.chunks[0].tokens_int32[1]",
        "0 to 63",
    ),
    "odd bytes": (_tokens(b"abc"), "data[1].model_input.chunks[0].tokens_int32", "multiple of 4"),
    "too long": (_tokens(pack_tokens([1] * 2049)), "data[1].model_input", "at most 2048"),
    "float targets": (_input("target_tokens", FOUR), "data[1].loss_fn_inputs['target_tokens'].dtype", "int32 or int64"),
    "short weights": (_input("weights", FOUR[:3]), "data[1].loss_fn_inputs['weights'].shape", "4 tokens"),
    "NaN weight": (
        _input("weights", np.array([1, np.nan, 1, 1], np.float32)),
        "data[1].loss_fn_inputs['weights'][1]",
        "nan: give finite",
    ),
    "missing input": (
        lambda r: r.data[1].loss_fn_inputs.pop("weights"),
        "data[1].loss_fn_inputs['weights']",
        "missing",
    ),
    "extra input": (_input("advantages", FOUR), "data[1].loss_fn_inputs['advantages']", "not an input"),
}


async def test_bad_requests_name_the_field_and_use_no_number(stub: Any, channel: RemoteChannel):
    session = await TrainingSession.create(stub, base_model=MODEL)
    # Straight to the socket: the kit's channel refuses some of these on its own.
    send = channel._channel.unary_unary("/crucible.port.training.v1.TrainingService/ForwardBackward")
    for name, (change, field, fix) in REFUSED.items():
        request = tp.ForwardBackwardRequest(
            session_id=session.session_id,
            sequence=1,
            data=to_proto(random_data([4, 4])),
            loss_fn=CROSS_ENTROPY,
        )
        change(request)
        error = await refusal(send, request.SerializeToString())
        assert isinstance(error, InvalidArgumentError), name
        assert ([each.field for each in error.fields], error.reason) == ([field], "FIELD_INVALID"), name
        assert fix in error.message, name
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_FLOAT32, shape=[4], dense=bytes(15))
    request.data[1].CopyFrom(request.data[0])
    request.data[1].loss_fn_inputs["weights"].CopyFrom(tensor)
    assert (await refusal(send, request.SerializeToString())).reason == "TENSOR_SIZE_MISMATCH"
    now = (await stub.GetTrainingSession(tp.GetTrainingSessionRequest(session_id=session.session_id))).session
    assert now.next_sequence == 1


async def refusal(send: Any, data: bytes) -> KitchenError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send(data)
    return from_rpc_error(caught.value)


async def test_what_is_not_declared_or_not_known_is_refused(stub: Any, channel: RemoteChannel):
    with pytest.raises(UnimplementedError) as lora:
        await TrainingSession.create(stub, base_model=MODEL, lora=tp.LoraConfig(rank=4))
    assert (lora.value.reason, lora.value.metadata["capability"]) == ("CAPABILITY_MISSING", "training.lora")
    with pytest.raises(NotFoundError) as model:
        await TrainingSession.create(stub, base_model="/a/folder")
    assert model.value.reason == "MODEL_NOT_FOUND"
    with pytest.raises(InvalidArgumentError) as dtype:
        await TrainingSession.create(stub, base_model=MODEL, dtype="float32")
    assert dtype.value.metadata["field"] == "dtype"
    raw = channel._channel.unary_unary
    service = "/crucible.port.training.v1.TrainingService"
    assert (await refusal(raw(f"{service}/Nope"), b"")).reason == "METHOD_MISSING"
    assert (await refusal(raw(f"{service}/GetTrainingSession"), b"\x0a\x05a")).reason == "MESSAGE_MALFORMED"
    unknown = await refusal(raw(f"{service}/GetTrainingSession"), b"\x0a\x01a\x78\x01")
    assert (unknown.reason, unknown.metadata["field"]) == ("FIELD_UNKNOWN", "#15")
