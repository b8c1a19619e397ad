"""Tinker's messages, and what the torch engine takes and gives."""

from __future__ import annotations

import numpy as np
from tinker.proto import tinker_public_pb2 as wire

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import datum_pb2
from crucible_kit.tensors import from_tensor, to_tensor, unpack_floats

_TYPES = {wire.DTYPE_FLOAT32: np.float32, wire.DTYPE_INT64: np.int64, wire.DTYPE_INT32: np.int32}
_STOPPED = {sp.STOP_REASON_STOP: wire.STOP_REASON_STOP, sp.STOP_REASON_LENGTH: wire.STOP_REASON_LENGTH}


def datum_of(given: wire.Datum) -> datum_pb2.Datum:
    """A datum as the engine takes it."""
    chunks = [datum_pb2.ModelInputChunk(tokens_int32=each.encoded_text.tokens) for each in given.model_input]
    inputs = {
        name: to_tensor(np.frombuffer(each.dense, _TYPES[each.dtype]).reshape(list(each.shape)))
        for name, each in given.loss_fn_inputs.items()
    }
    return datum_pb2.Datum(model_input=datum_pb2.ModelInput(chunks=chunks), loss_fn_inputs=inputs)


def output_of(result: tp.ForwardResult) -> bytes:
    """The message of a pass's result."""
    rows = [from_tensor(each.logprobs) for each in result.outputs]
    offsets = np.cumsum([0, *(row.nbytes for row in rows)]).astype(np.int64)
    output = wire.ForwardBackwardOutput(loss_fn_output_type="TorchLossReturn")
    record = output.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=len(rows))
    record.fields["logprobs"].CopyFrom(
        wire.BatchedTensor(
            data=b"".join(row.tobytes() for row in rows), offsets=offsets.tobytes(), dtype=wire.DTYPE_FLOAT32
        )
    )
    output.metrics["loss:sum"] = result.loss
    output.metrics["tokens:sum"] = result.metrics["tokens"]
    return output.SerializeToString()


def samples_of(result: sp.SampleResult) -> bytes:
    """The message of completions."""
    sequences = [
        wire.SampledSequence(
            stop_reason=_STOPPED[each.stop_reason], tokens=each.tokens_int32, logprobs=each.logprobs_float32
        )
        for each in result.sequences
    ]
    answer = wire.SampleResponse(sequences=sequences)
    if result.HasField("prompt_logprobs_float32"):
        # The first token has none.
        scores = np.concatenate([[np.nan], unpack_floats(result.prompt_logprobs_float32)]).astype(np.float32)
        answer.prompt_logprobs = scores.tobytes()
    return answer.SerializeToString()
