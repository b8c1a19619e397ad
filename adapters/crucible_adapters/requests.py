"""What is checked alike of the requests of training and sampling, whatever model they are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from crucible.port.training.v1 import training_pb2
from crucible.type.v1 import datum_pb2, tensor_pb2
from crucible_kit.errors import capability_missing, field_error
from crucible_kit.tensors import from_tensor, unpack_tokens

TARGETS = "target_tokens"
_MAX_TTL_SECONDS = 100 * 365 * 86400


class ParsedDatum(NamedTuple):
    """A datum's arrays, all of shape [n].

    Attributes:
        targets: int64.
        inputs: float32, finite, by their names.
    """

    tokens: np.ndarray
    targets: np.ndarray
    inputs: dict[str, np.ndarray]


def parse_data(
    data: Sequence[datum_pb2.Datum], inputs: Sequence[str], *, vocab_size: int, max_tokens: int
) -> list[ParsedDatum]:
    """Datums with at most `max_tokens` tokens of the vocabulary and, beside the targets, exactly these loss inputs."""
    return [_parse_datum(each, f"data[{index}]", inputs, vocab_size, max_tokens) for index, each in enumerate(data)]


def _parse_datum(
    datum: datum_pb2.Datum, path: str, inputs: Sequence[str], vocab_size: int, max_tokens: int
) -> ParsedDatum:
    chunks = []
    for index, chunk in enumerate(datum.model_input.chunks):
        field = f"{path}.model_input.chunks[{index}]"
        match chunk.WhichOneof("chunk"):
            case "tokens_int32":
                chunks.append(parse_tokens(chunk.tokens_int32, f"{field}.tokens_int32", vocab_size))
            case "image":
                raise capability_missing("training", "training.image_input", f"{field}: send token ids only")
            case _:
                raise field_error(field, "has no content: set tokens_int32")
    tokens = np.concatenate(chunks)
    if len(tokens) > max_tokens:
        problem = f"has {len(tokens)} tokens, the model takes at most {max_tokens}: cut it"
        raise field_error(f"{path}.model_input", problem)
    wanted = {TARGETS, *inputs}
    for name in sorted(wanted ^ set(datum.loss_fn_inputs)):
        problem = "missing" if name in wanted else "not an input of this loss"
        raise field_error(f"{path}.loss_fn_inputs[{name!r}]", f"{problem}: it takes {', '.join(sorted(wanted))}")
    field = f"{path}.loss_fn_inputs[{TARGETS!r}]"
    targets = _parse_input(datum.loss_fn_inputs[TARGETS], field, len(tokens), ("int32", "int64"))
    check_ids(targets, field, vocab_size)
    parsed = {}
    for name in inputs:
        field = f"{path}.loss_fn_inputs[{name!r}]"
        parsed[name] = values = _parse_input(datum.loss_fn_inputs[name], field, len(tokens), ("float32",))
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise field_error(f"{field}[{bad[0]}]", f"is {values[bad[0]]}: give finite numbers")
    return ParsedDatum(tokens, targets.astype(np.int64), parsed)


def _parse_input(tensor: tensor_pb2.Tensor, field: str, length: int, dtypes: tuple[str, ...]) -> np.ndarray:
    values = from_tensor(tensor, field=field)
    if values.dtype.name not in dtypes:
        given = tensor_pb2.DType.Name(tensor.dtype).removeprefix("D_TYPE_").lower()
        raise field_error(f"{field}.dtype", f"is {given}: send {' or '.join(dtypes)}")
    if values.shape != (length,):
        raise field_error(f"{field}.shape", f"is {list(values.shape)}, the input has {length} tokens: send [{length}]")
    return values


def parse_tokens(data: bytes, field: str, vocab_size: int) -> np.ndarray:
    """Token ids of shape [n], n at least 1."""
    tokens = unpack_tokens(data, field=field)
    if not len(tokens):
        raise field_error(field, "has no tokens: send at least one")
    return check_ids(tokens, field, vocab_size)


def check_ids(tokens: np.ndarray, field: str, vocab_size: int) -> np.ndarray:
    """The tokens, all of them ids of the vocabulary."""
    bad = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    if bad.size:
        problem = f"is {tokens[bad[0]]}, outside the vocabulary: ids are 0 to {vocab_size - 1}"
        raise field_error(f"{field}[{bad[0]}]", problem)
    return tokens


def check_tokens_in_flight(tokens: int, limit: int, field: str, fix: str) -> None:
    """Refuses a request that no session could ever have in flight: trying again would not help."""
    if tokens > limit:
        raise field_error(field, f"makes {tokens} tokens, more than the {limit} that a session may have: {fix}")


def check_adam(adam: training_pb2.AdamParams) -> None:
    """Refuses what makes no step."""
    for name in ("beta1", "beta2"):
        value = getattr(adam, name)
        if value >= 1:
            raise field_error(f"adam.{name}", f"is {value:g}, must be below 1")
    if adam.HasField("eps") and adam.eps == 0:
        raise field_error("adam.eps", "is 0, must be above 0: a weight without gradient would become NaN; use 1e-8")


def parse_ttl(request: training_pb2.SaveCheckpointRequest) -> int | None:
    """Nanoseconds that the checkpoint is kept; None: until it is deleted."""
    if not request.HasField("ttl"):
        return None
    nanos = request.ttl.seconds * 10**9 + request.ttl.nanos
    if not 0 < nanos <= _MAX_TTL_SECONDS * 10**9:
        raise field_error("ttl", f"is {nanos / 1e9:g} s, give more than 0 and at most 100 years, or leave it out")
    return nanos
