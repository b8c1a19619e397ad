"""Training adapters: what data is taken, and what is refused before anything is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crucible.port.training.v1 import training_pb2 as pb
from crucible.type.v1 import datum_pb2, tensor_pb2
from crucible_kit.conformance.expect import check_equal, check_refused
from crucible_kit.conformance.training_session import (
    LOSS,
    SUITE,
    Session,
    Training,
    check_same,
    check_same_logprobs,
    datum,
    joined_logprobs,
    open_session,
)
from crucible_kit.tensors import to_tensor

_ELEMENT_BYTES = {
    tensor_pb2.D_TYPE_FLOAT32: 4,
    tensor_pb2.D_TYPE_BFLOAT16: 2,
    tensor_pb2.D_TYPE_FLOAT16: 2,
    tensor_pb2.D_TYPE_FLOAT64: 8,
    tensor_pb2.D_TYPE_INT32: 4,
    tensor_pb2.D_TYPE_INT64: 8,
    tensor_pb2.D_TYPE_UINT8: 1,
    tensor_pb2.D_TYPE_BOOL: 1,
}


async def check_data_refused(
    context: Training, cases: Mapping[str, datum_pb2.Datum], *reasons: str, session: Session | None = None
) -> None:
    """Both passes refuse each datum, also behind a good one, and nothing of the session changes."""
    session = await open_session(context) if session is None else session
    for what, bad in cases.items():
        for method in ("Forward", "ForwardBackward"):
            for data in ([bad], [session.data(1)[0], bad]):
                call = session.send(method, sequence=1, data=data, loss_fn=LOSS)
                await check_refused(
                    call, "INVALID_ARGUMENT", *(reasons or ("FIELD_INVALID",)), what=f"{method} of {what}"
                )
    check_equal((await session.info()).next_sequence, 1, "next_sequence after refused data")


def changed(given: datum_pb2.Datum, **inputs: tensor_pb2.Tensor | None) -> datum_pb2.Datum:
    """A datum with other inputs of the loss; None leaves one out."""
    copy = datum_pb2.Datum()
    copy.CopyFrom(given)
    for name, tensor in inputs.items():
        copy.loss_fn_inputs.pop(name, None)
        if tensor is not None:
            copy.loss_fn_inputs[name].CopyFrom(tensor)
    return copy


@SUITE.requirement(
    "TRN-DATA-01",
    "Tokens and targets outside the vocabulary MUST be refused.",
    quote="Size of the vocabulary: ids are below it.",
)
async def _outside_the_vocabulary(context: Training) -> None:
    session = await open_session(context)
    size = session.created.vocab_size
    cases = {
        "a token that is vocab_size": datum([0, size], [0, 0], [1, 1]),
        "a token below 0": datum([-1], [0], [1]),
        "a target that is vocab_size": datum([0], [size], [1]),
        "a target below 0": datum([0, 0], [0, -1], [1, 1]),
        "a target far outside": datum([0], [2**31 - 1], [1]),
    }
    await check_data_refused(context, cases, session=session)


@SUITE.requirement(
    "TRN-DATA-02",
    "Weights that are no finite numbers MUST be refused.",
    quote="INVALID_ARGUMENT FIELD_INVALID with the field's path",
)
async def _no_numbers(context: Training) -> None:
    cases = {f"the weight {value}": datum([0, 0], [0, 0], [1, value]) for value in (np.nan, np.inf, -np.inf)}
    await check_data_refused(context, cases)


@SUITE.requirement(
    "TRN-DATA-03",
    "A missing or an extra input of the loss MUST be refused.",
    quote="a missing or an extra name // is refused.",
)
async def _wrong_names(context: Training) -> None:
    good = datum([0, 0], [0, 0], [1, 1])
    cases = {
        "data without weights": changed(good, weights=None),
        "data without targets": changed(good, target_tokens=None),
        "data with an unknown input": changed(good, no_input_is_called_so=good.loss_fn_inputs["weights"]),
    }
    await check_data_refused(context, cases)


@SUITE.requirement(
    "TRN-DATA-04",
    "Tensors whose bytes do not fit their shape MUST be refused, with TENSOR_SIZE_MISMATCH.",
    quote="exactly product(shape) x element size bytes, otherwise TENSOR_SIZE_MISMATCH.",
)
async def _wrong_sizes(context: Training) -> None:
    good = datum([0, 0], [0, 0], [1, 1])
    short, long = tensor_pb2.Tensor(), tensor_pb2.Tensor()
    for tensor in (short, long):
        tensor.CopyFrom(good.loss_fn_inputs["weights"])
    short.dense, long.dense = short.dense[:-1], long.dense + b"\0\0\0\0"
    cases = {"weights with too few bytes": changed(good, weights=short)}
    cases["weights with too many bytes"] = changed(good, weights=long)
    await check_data_refused(context, cases, "TENSOR_SIZE_MISMATCH")


@SUITE.requirement(
    "TRN-DATA-05",
    "Inputs of the loss that are not aligned with the tokens MUST be refused.",
    quote="each a dense tensor of shape [n], aligned with the input",
)
async def _wrong_shapes(context: Training) -> None:
    good = datum([0, 0], [0, 0], [1, 1])
    ones = np.ones(2, dtype=np.float32)
    cases = {
        "weights of one token too few": changed(good, weights=to_tensor(ones[:1])),
        "weights of one token too many": changed(good, weights=to_tensor(np.ones(3, dtype=np.float32))),
        "weights of shape [1, n]": changed(good, weights=to_tensor(ones.reshape(1, 2))),
        "weights of no dimension": changed(good, weights=to_tensor(ones[0].reshape(()))),
        "weights of no element": changed(good, weights=to_tensor(ones[:0])),
        "targets of one token too few": changed(good, target_tokens=to_tensor(np.zeros(1, dtype=np.int32))),
        "weights in no storage": changed(good, weights=tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_FLOAT32, shape=[2])),
    }
    await check_data_refused(context, cases)


@SUITE.requirement(
    "TRN-DATA-06",
    "Inputs of another element type than the loss takes MUST be refused: targets are int32 or int64, weights float32.",
    quote="cross_entropy takes `target_tokens` (int32 or int64) and `weights` (float32)",
)
async def _wrong_types(context: Training) -> None:
    good = datum([0, 0], [0, 0], [1, 1])
    cases = {}
    taken = {
        "target_tokens": (tensor_pb2.D_TYPE_INT32, tensor_pb2.D_TYPE_INT64),
        "weights": (tensor_pb2.D_TYPE_FLOAT32,),
    }
    for name, types in taken.items():
        for dtype, size in _ELEMENT_BYTES.items():
            if dtype not in types:
                tensor = tensor_pb2.Tensor(dtype=dtype, shape=[2], dense=bytes(2 * size))
                cases[f"{name} of {tensor_pb2.DType.Name(dtype)}"] = changed(good, **{name: tensor})
    await check_data_refused(context, cases)


@SUITE.requirement(
    "TRN-DATA-07",
    "Targets MUST mean the same as int32 and as int64, and a weight of -0 the same as 0.",
    quote="cross_entropy takes `target_tokens` (int32 or int64) and `weights` (float32)",
)
async def _same_in_other_types(context: Training) -> None:
    session = await open_session(context)
    tokens = np.arange(7) % session.created.vocab_size
    weights = np.array([1, 0, 0.5, 0, 2, 0], dtype=np.float32)
    plain = datum(tokens[:-1], tokens[1:], weights)
    wide = changed(plain, target_tokens=to_tensor(tokens[1:].astype(np.int64)))
    signed = changed(plain, weights=to_tensor(np.where(weights == 0, np.float32(-0.0), weights)))
    expected = await session.forward([plain])
    for what, other in (("int64 targets", wide), ("weights of -0", signed)):
        got = await session.forward([other])
        check_same(context, got.loss, expected.loss, f"the loss with {what}")
        check_same_logprobs(context, joined_logprobs(got), joined_logprobs(expected), f"logprobs with {what}")


@SUITE.requirement(
    "TRN-DATA-08",
    "Input that is no sequence the model takes MUST be refused: no token, half a token, more than max_sequence_tokens.",
    quote="Longest sequence the model takes, in tokens.",
)
async def _no_sequences(context: Training) -> None:
    session = await open_session(context)
    longest = session.created.max_sequence_tokens
    half = datum([0], [0], [1])
    half.model_input.chunks[0].tokens_int32 = b"\0\0\0"
    nothing = datum([0], [0], [1])
    nothing.model_input.chunks[0].Clear()
    cases = {
        "a sequence without tokens": datum([], [], []),
        "a chunk of 3 bytes": half,
        "a chunk of nothing": nothing,
    }
    if longest * 12 < context.max_message_bytes // 2:
        cases["a sequence longer than the model takes"] = datum(*[np.zeros(longest + 1)] * 3)
    await check_data_refused(context, cases, session=session)


@SUITE.requirement(
    "TRN-DATA-09",
    "Input in several chunks MUST be the same as in one, and a sequence of max_sequence_tokens be taken.",
    quote="ModelInput is a sequence of chunks, concatenated.",
)
async def _chunks(context: Training) -> None:
    session = await open_session(context)
    tokens = np.arange(7) % session.created.vocab_size
    one = datum(tokens[:-1], tokens[1:], np.ones(6))
    several = changed(one)
    [whole] = one.model_input.chunks
    del several.model_input.chunks[:]
    for start, end in ((0, 4), (4, 12), (12, 24)):
        several.model_input.chunks.add(tokens_int32=whole.tokens_int32[start:end])
    expected = await session.logprobs([one])
    check_same_logprobs(context, await session.logprobs([several]), expected, "logprobs of input in three chunks")
    longest = session.created.max_sequence_tokens
    if longest <= 4096:
        zeros = np.zeros(longest)
        await session.forward([datum(zeros, zeros, zeros)])


@SUITE.requirement(
    "TRN-DATA-10",
    "An unknown loss, and an unknown parameter of a known one, MUST be refused.",
    quote="Required; unknown is INVALID_ARGUMENT.",
)
async def _unknown_losses(context: Training) -> None:
    session = await open_session(context)
    losses: Sequence[Any] = (
        pb.LossFunction(name="no-loss-is-called-so"),
        pb.LossFunction(name="cross_entropy", parameters={"no_parameter": 1.0}),
    )
    for loss in losses:
        for method in ("Forward", "ForwardBackward"):
            call = session.send(method, sequence=1, data=session.data(1), loss_fn=loss)
            await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what=f"{method} with {str(loss).strip()!r}")
    check_equal((await session.info()).next_sequence, 1, "next_sequence after refused losses")
