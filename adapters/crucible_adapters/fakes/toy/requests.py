"""Requests of training and sampling, checked against the toy model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crucible.port.sampling.v1 import sampling_pb2
from crucible.port.training.v1 import training_pb2
from crucible.type.v1 import datum_pb2, tensor_pb2
from crucible_adapters.fakes.toy.engine import ToyOptions
from crucible_adapters.fakes.toy.losses import LOSSES, Loss
from crucible_adapters.fakes.toy.model import TARGET, AdamOptions, Lora, SamplingOptions
from crucible_adapters.fakes.toy.session import Datum
from crucible_kit.errors import capability_missing, field_error
from crucible_kit.tensors import from_tensor, unpack_tokens

TARGETS = "target_tokens"
_MAX_TTL_SECONDS = 100 * 366 * 86400


def parse_lora(config: training_pb2.LoraConfig) -> Lora:
    """The adapter to train; the bigram matrix stands for attention and MLP alike."""
    if config.rank < 1:
        raise field_error("lora.rank", f"is {config.rank}, must be at least 1")
    alpha = config.alpha if config.HasField("alpha") else float(config.rank)
    if not 0 < alpha < float("inf"):
        raise field_error("lora.alpha", f"is {alpha:g}, must be above 0 and finite")
    groups = [name for name in ("train_mlp", "train_attention", "train_unembedding") if config.HasField(name)]
    if config.target_modules and groups:
        raise field_error(f"lora.{groups[0]}", "is set beside target_modules: leave one of them out")
    for index, module in enumerate(config.target_modules):
        if module != TARGET:
            raise field_error(f"lora.target_modules[{index}]", f"is {module!r}: this model has only {TARGET}")
    if config.train_unembedding:
        raise field_error("lora.train_unembedding", "is true, but this model has no unembedding: leave it out")
    wanted = [getattr(config, name) or not config.HasField(name) for name in ("train_mlp", "train_attention")]
    if not config.target_modules and not any(wanted):
        raise field_error("lora", "adapts nothing: set train_mlp or train_attention")
    return Lora(rank=config.rank, alpha=alpha)


def parse_loss(given: training_pb2.LossFunction) -> tuple[Loss, dict[str, float]]:
    """The loss and the parameters that are set."""
    loss = LOSSES.get(given.name)
    if loss is None:
        raise field_error("loss_fn.name", f"unknown loss {given.name!r}: use one of {', '.join(sorted(LOSSES))}")
    for name, value in given.parameters.items():
        if name not in loss.parameters:
            takes = ", ".join(sorted(loss.parameters)) or "none"
            raise field_error(f"loss_fn.parameters[{name!r}]", f"not a parameter of {given.name}, which takes {takes}")
        if not np.isfinite(value):
            raise field_error(f"loss_fn.parameters[{name!r}]", f"is {value}: give a finite number")
    return loss, dict(given.parameters)


def parse_data(data: Sequence[datum_pb2.Datum], loss: Loss, options: ToyOptions) -> list[Datum]:
    """The data as arrays."""
    return [_parse_datum(datum, f"data[{index}]", loss, options) for index, datum in enumerate(data)]


def _parse_datum(datum: datum_pb2.Datum, path: str, loss: Loss, options: ToyOptions) -> Datum:
    chunks = []
    for index, chunk in enumerate(datum.model_input.chunks):
        field = f"{path}.model_input.chunks[{index}]"
        match chunk.WhichOneof("chunk"):
            case "tokens_int32":
                chunks.append(parse_tokens(chunk.tokens_int32, f"{field}.tokens_int32", options))
            case "image":
                raise capability_missing("training", "training.image_input", f"{field}: send token ids only")
            case _:
                raise field_error(field, "has no content: set tokens_int32")
    tokens = np.concatenate(chunks)
    if len(tokens) > options.max_sequence_tokens:
        problem = f"has {len(tokens)} tokens, the model takes at most {options.max_sequence_tokens}: cut it"
        raise field_error(f"{path}.model_input", problem)
    wanted = {TARGETS, *loss.inputs}
    for name in sorted(wanted ^ set(datum.loss_fn_inputs)):
        problem = "missing" if name in wanted else "not an input of this loss"
        raise field_error(f"{path}.loss_fn_inputs[{name!r}]", f"{problem}: it takes {', '.join(sorted(wanted))}")
    field = f"{path}.loss_fn_inputs[{TARGETS!r}]"
    targets = _parse_input(datum.loss_fn_inputs[TARGETS], field, len(tokens), ("int32", "int64"))
    inputs = {}
    for name in loss.inputs:
        input_field = f"{path}.loss_fn_inputs[{name!r}]"
        values = _parse_input(datum.loss_fn_inputs[name], input_field, len(tokens), ("float32",))
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise field_error(f"{input_field}[{bad[0]}]", f"is {values[bad[0]]}: give finite numbers")
        inputs[name] = values.astype(np.float64)
    return Datum(tokens.astype(np.int64), _check_ids(targets, field, options).astype(np.int64), inputs)


def _parse_input(tensor: tensor_pb2.Tensor, field: str, length: int, dtypes: tuple[str, ...]) -> np.ndarray:
    values = from_tensor(tensor, field=field)
    if values.dtype.name not in dtypes:
        raise field_error(f"{field}.dtype", f"is {values.dtype.name}: send {' or '.join(dtypes)}")
    if values.shape != (length,):
        raise field_error(f"{field}.shape", f"is {list(values.shape)}, the input has {length} tokens: send [{length}]")
    return values


def parse_tokens(data: bytes, field: str, options: ToyOptions) -> np.ndarray:
    """Token ids of shape [n], n at least 1."""
    tokens = unpack_tokens(data, field=field)
    if not len(tokens):
        raise field_error(field, "has no tokens: send at least one")
    return _check_ids(tokens, field, options)


def parse_prompt(data: bytes, field: str, options: ToyOptions, *, room: int) -> np.ndarray:
    """Token ids of a prompt that leaves `room` tokens of the longest sequence free."""
    tokens = parse_tokens(data, field, options)
    most = options.max_sequence_tokens - room
    if len(tokens) > most:
        raise field_error(field, f"has {len(tokens)} tokens, the model takes at most {most} here: cut the prompt")
    return tokens


def _check_ids(tokens: np.ndarray, field: str, options: ToyOptions) -> np.ndarray:
    bad = np.flatnonzero((tokens < 0) | (tokens >= options.vocab_size))
    if bad.size:
        problem = f"is {tokens[bad[0]]}, outside the vocabulary: ids are 0 to {options.vocab_size - 1}"
        raise field_error(f"{field}[{bad[0]}]", problem)
    return tokens


def check_tokens_in_flight(tokens: int, field: str, options: ToyOptions, fix: str) -> None:
    """Refuses a request that no session could ever have in flight: trying again would not help."""
    limit = options.max_tokens_in_flight
    if tokens > limit:
        raise field_error(field, f"makes {tokens} tokens, more than the {limit} that a session may have: {fix}")


def parse_adam(adam: training_pb2.AdamParams) -> AdamOptions:
    """One step's options, defaults filled in."""
    given = {name: getattr(adam, name) for name in AdamOptions._fields[1:] if adam.HasField(name)}
    for name in ("beta1", "beta2"):
        if given.get(name, 0.0) >= 1:
            raise field_error(f"adam.{name}", f"is {given[name]:g}, must be below 1")
    if given.get("eps") == 0:
        raise field_error("adam.eps", "is 0, must be above 0: a weight without gradient would become NaN; use 1e-8")
    return AdamOptions(adam.learning_rate, **given)


def parse_ttl(request: training_pb2.SaveCheckpointRequest) -> int | None:
    """Nanoseconds that the checkpoint is kept; None: until it is deleted."""
    if not request.HasField("ttl"):
        return None
    nanos = request.ttl.seconds * 10**9 + request.ttl.nanos
    if not 0 < nanos <= _MAX_TTL_SECONDS * 10**9:
        raise field_error("ttl", f"is {nanos / 1e9:g} s, give more than 0 and at most 100 years, or leave it out")
    return nanos


def parse_sampling(params: sampling_pb2.SamplingParams, options: ToyOptions) -> SamplingOptions:
    """How to choose tokens, defaults filled in."""
    if params.stop_tokens:
        _check_ids(np.array(params.stop_tokens), "params.stop_tokens", options)
    names = ("temperature", "top_p", "top_k", "seed")
    given = {name: getattr(params, name) for name in names if params.HasField(name)}
    return SamplingOptions(params.max_tokens, stop_tokens=frozenset(params.stop_tokens), **given)
