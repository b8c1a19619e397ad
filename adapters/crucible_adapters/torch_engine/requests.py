"""Requests into what the engine computes on. Everything that can be checked is checked here, before acceptance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crucible.port.sampling.v1 import sampling_pb2
from crucible.port.training.v1 import training_pb2
from crucible.type.v1 import datum_pb2, tensor_pb2
from crucible_adapters.torch_engine.batching import Datum
from crucible_adapters.torch_engine.loss import TokenLoss, get_loss
from crucible_adapters.torch_engine.models import LoadedModel
from crucible_adapters.torch_engine.optimizer import AdamWOptions
from crucible_adapters.torch_engine.sampler import SamplingOptions
from crucible_kit.errors import capability_missing, field_error
from crucible_kit.settings import unknown_key
from crucible_kit.tensors import from_tensor, unpack_tokens

TARGETS = "target_tokens"
MAX_TTL_SECONDS = 100 * 365 * 86400


def parse_loss(request: training_pb2.LossFunction) -> tuple[TokenLoss, dict[str, float]]:
    """The loss and its parameters."""
    loss = get_loss(request.name)
    for name, value in request.parameters.items():
        field = f"loss_fn.parameters[{name!r}]"
        if name not in loss.config:
            known = unknown_key(name, loss.config) if loss.config else f"{loss.name} has no parameters"
            raise field_error(field, known)
        if not np.isfinite(value):
            raise field_error(field, f"is {value}: give a finite number")
    return loss, dict(request.parameters)


def parse_data(data: Sequence[datum_pb2.Datum], loss: TokenLoss, model: LoadedModel) -> list[Datum]:
    """The datums with tokens in the vocabulary and exactly the loss's inputs, all of one length each."""
    return [_parse_datum(datum, f"data[{index}]", loss, model) for index, datum in enumerate(data)]


def _parse_datum(datum: datum_pb2.Datum, path: str, loss: TokenLoss, model: LoadedModel) -> Datum:
    chunks = []
    for index, chunk in enumerate(datum.model_input.chunks):
        field = f"{path}.model_input.chunks[{index}]"
        kind = chunk.WhichOneof("chunk")
        if kind == "image":
            raise capability_missing("training", "training.image_input", f"{field}: send token ids only")
        if kind is None:
            raise field_error(field, "has no content: set tokens_int32")
        field = f"{field}.tokens_int32"
        chunks.append(check_tokens(unpack_tokens(chunk.tokens_int32, field=field), field, model))
    tokens = np.concatenate(chunks)
    check_length(tokens, f"{path}.model_input", model)
    wanted = {TARGETS, *loss.inputs}
    for name in sorted(wanted ^ set(datum.loss_fn_inputs)):
        problem = "missing" if name in wanted else "not an input of this loss"
        takes = ", ".join(sorted(wanted))
        raise field_error(f"{path}.loss_fn_inputs[{name!r}]", f"{problem}: {loss.name} takes {takes}")
    field = f"{path}.loss_fn_inputs[{TARGETS!r}]"
    targets = _parse_input(datum.loss_fn_inputs[TARGETS], field, len(tokens), ("int32", "int64"))
    inputs = {}
    for name in loss.inputs:
        input_field = f"{path}.loss_fn_inputs[{name!r}]"
        values = _parse_input(datum.loss_fn_inputs[name], input_field, len(tokens), ("float32",))
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise field_error(f"{input_field}[{bad[0]}]", f"is {values[bad[0]]}: give finite numbers")
        inputs[name] = values
    return Datum(
        tokens=tokens.astype(np.int64), targets=check_tokens(targets, field, model).astype(np.int64), inputs=inputs
    )


def _parse_input(tensor: tensor_pb2.Tensor, field: str, length: int, dtypes: tuple[str, ...]) -> NDArray:
    values = from_tensor(tensor, field=field)
    if values.dtype.name not in dtypes:
        given = tensor_pb2.DType.Name(tensor.dtype).removeprefix("D_TYPE_").lower()
        raise field_error(f"{field}.dtype", f"is {given}: send {' or '.join(dtypes)}")
    if values.shape != (length,):
        raise field_error(f"{field}.shape", f"is {list(values.shape)}, the input has {length} tokens: send [{length}]")
    return values


def check_tokens(tokens: NDArray[np.integer], field: str, model: LoadedModel) -> NDArray[np.integer]:
    """The tokens, all of them ids of the model's vocabulary; at least one."""
    if tokens.size == 0:
        raise field_error(field, "has no tokens: send at least one")
    bad = np.flatnonzero((tokens < 0) | (tokens >= model.vocab_size))
    if bad.size:
        raise field_error(
            f"{field}[{bad[0]}]", f"is {tokens[bad[0]]}, outside the vocabulary: ids are 0 to {model.vocab_size - 1}"
        )
    return tokens


def check_length(tokens: NDArray[np.integer], field: str, model: LoadedModel) -> None:
    """Refuse a sequence that the model's positions do not reach."""
    if len(tokens) > model.max_positions:
        raise field_error(field, f"has {len(tokens)} tokens, the model takes at most {model.max_positions}: cut it")


def parse_ttl(request: training_pb2.SaveCheckpointRequest) -> int | None:
    """Nanoseconds that the checkpoint is kept; None: until it is deleted."""
    if not request.HasField("ttl"):
        return None
    ttl_ns = request.ttl.seconds * 10**9 + request.ttl.nanos
    if not 0 < ttl_ns <= MAX_TTL_SECONDS * 10**9:
        raise field_error(
            "ttl", f"is {ttl_ns / 1e9:g} s, give more than 0 and at most 100 years, or leave it out to keep it"
        )
    return ttl_ns


def check_tokens_in_flight(tokens: int, limit: int, field: str, fix: str) -> None:
    """Refuse a request that no session could ever have in flight: trying again would not help."""
    if tokens > limit:
        raise field_error(field, f"makes {tokens} tokens, more than the {limit} that a session may have: {fix}")


def parse_adam(adam: training_pb2.AdamParams) -> AdamWOptions:
    """One step's options, defaults filled in."""
    given = {
        field: getattr(adam, field)
        for field in ("beta1", "beta2", "eps", "weight_decay", "grad_clip_norm")
        if adam.HasField(field)
    }
    for field in ("beta1", "beta2"):
        if given.get(field, 0.0) >= 1.0:
            raise field_error(f"adam.{field}", f"is {given[field]:g}, must be below 1")
    if given.get("eps") == 0.0:
        raise field_error("adam.eps", "is 0, must be above 0: a weight without gradient would become NaN; use 1e-8")
    return AdamWOptions(learning_rate=adam.learning_rate, **given)


def parse_prompt(data: bytes, field: str, model: LoadedModel, *, room: int = 0) -> NDArray[np.integer]:
    """Token ids of a prompt that leaves `room` tokens of the model's longest sequence free."""
    tokens = check_tokens(unpack_tokens(data, field=field), field, model)
    if len(tokens) > model.max_positions - room:
        raise field_error(
            field,
            f"has {len(tokens)} tokens, the model takes at most {model.max_positions - room} here: cut the prompt",
        )
    return tokens


def sampling_tokens(prompt: NDArray[np.integer], num_samples: int, options: SamplingOptions, model: LoadedModel) -> int:
    """The most tokens that sampling runs through the model; the prompt counts once."""
    return len(prompt) + num_samples * min(options.max_tokens, model.max_positions - len(prompt))


def parse_sampling(params: sampling_pb2.SamplingParams, model: LoadedModel) -> SamplingOptions:
    """How to choose tokens, defaults filled in."""
    given = {
        field: getattr(params, field) for field in ("temperature", "top_p", "top_k", "seed") if params.HasField(field)
    }
    if params.stop_tokens:
        check_tokens(np.array(params.stop_tokens), "params.stop_tokens", model)
    return SamplingOptions(max_tokens=params.max_tokens, stop_tokens=frozenset(params.stop_tokens), **given)
