"""Requests of both ports, checked, as what the library takes. Everything that can be checked is checked here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from crucible.port.sampling.v1 import sampling_pb2
from crucible.port.training.v1 import training_pb2
from crucible.type.v1 import datum_pb2, tensor_pb2
from crucible_adapters.tinker.models import ModelFacts
from crucible_kit.errors import capability_missing, field_error
from crucible_kit.settings import unknown_key
from crucible_kit.tensors import from_tensor, unpack_tokens

TARGETS = "target_tokens"
SHORTEST_TTL_SECONDS, LONGEST_TTL_SECONDS = 3600, 10 * 365 * 86400
"""What Tinker takes."""
_MAX_TTL_SECONDS = 100 * 365 * 86400
# Tinker tells the norm of the gradients only when it clips them; a norm that none reaches clips nothing.
_NO_CLIP_NORM = 1e12


class Loss(NamedTuple):
    """The float inputs that a datum must carry beside target_tokens, and the parameters there are."""

    inputs: tuple[str, ...]
    parameters: tuple[str, ...]


_POLICY = ("advantages", "logprobs")
_CLIP = ("clip_high_threshold", "clip_low_threshold")
LOSSES = {
    "cross_entropy": Loss(("weights",), ()),
    "importance_sampling": Loss(_POLICY, ()),
    "ppo": Loss(_POLICY, _CLIP),
    "cispo": Loss(_POLICY, _CLIP),
    "dro": Loss(_POLICY, ("beta",)),
    "gspo": Loss((*_POLICY, "sequence_ratio_mask"), _CLIP),
}
"""Those that Tinker has by name. Every other one is Forward, and cross_entropy with the loss's slopes as weights."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A forward pass, with or without gradients.

    Attributes:
        data: the library's datums.
        tokens: in all of them.
    """

    data: list[Any]
    loss: str
    parameters: dict[str, float]
    tokens: int


def parse_pass(
    request: training_pb2.ForwardRequest | training_pb2.ForwardBackwardRequest, facts: ModelFacts, max_tokens: int
) -> Pass:
    """The pass. Loads the library's types, so call it in a thread."""
    loss, parameters = _parse_loss(request.loss_fn)
    rows = [_parse_datum(datum, f"data[{index}]", loss, facts) for index, datum in enumerate(request.data)]
    tokens = sum(len(each) for each, _ in rows)
    check_tokens_in_flight(tokens, max_tokens, "data", "send it in several calls")
    from tinker import types

    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(row.tolist()),
            loss_fn_inputs={name: types.TensorData.from_numpy(each) for name, each in inputs.items()},
        )
        for row, inputs in rows
    ]
    return Pass(data=data, loss=request.loss_fn.name, parameters=parameters, tokens=tokens)


def _parse_loss(given: training_pb2.LossFunction) -> tuple[Loss, dict[str, float]]:
    loss = LOSSES.get(given.name)
    if loss is None:
        raise field_error("loss_fn.name", f"unknown loss {given.name!r}: use one of {', '.join(sorted(LOSSES))}")
    for name, value in given.parameters.items():
        field = f"loss_fn.parameters[{name!r}]"
        if name not in loss.parameters:
            known = unknown_key(name, loss.parameters) if loss.parameters else f"{given.name} has no parameters"
            raise field_error(field, known)
        if not math.isfinite(value):
            raise field_error(field, f"is {value}: give a finite number")
    return loss, dict(given.parameters)


def _parse_datum(
    datum: datum_pb2.Datum, path: str, loss: Loss, facts: ModelFacts
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    chunks = []
    for index, chunk in enumerate(datum.model_input.chunks):
        field = f"{path}.model_input.chunks[{index}]"
        match chunk.WhichOneof("chunk"):
            case "tokens_int32":
                chunks.append(parse_tokens(chunk.tokens_int32, f"{field}.tokens_int32", facts))
            case "image":
                raise capability_missing("training", "training.image_input", f"{field}: send token ids only")
            case _:
                raise field_error(field, "has no content: set tokens_int32")
    tokens = np.concatenate(chunks)
    _check_length(tokens, f"{path}.model_input", facts, room=0)
    wanted = {TARGETS, *loss.inputs}
    for name in sorted(wanted ^ set(datum.loss_fn_inputs)):
        problem = "missing" if name in wanted else "not an input of this loss"
        raise field_error(f"{path}.loss_fn_inputs[{name!r}]", f"{problem}: it takes {', '.join(sorted(wanted))}")
    field = f"{path}.loss_fn_inputs[{TARGETS!r}]"
    targets = _parse_input(datum.loss_fn_inputs[TARGETS], field, len(tokens), ("int32", "int64"))
    inputs: dict[str, np.ndarray] = {TARGETS: _check_ids(targets, field, facts).astype(np.int64)}
    for name in loss.inputs:
        input_field = f"{path}.loss_fn_inputs[{name!r}]"
        values = _parse_input(datum.loss_fn_inputs[name], input_field, len(tokens), ("float32",))
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise field_error(f"{input_field}[{bad[0]}]", f"is {values[bad[0]]}: give finite numbers")
        inputs[name] = values.astype(np.float32)
    return tokens, inputs


def _parse_input(tensor: tensor_pb2.Tensor, field: str, length: int, dtypes: tuple[str, ...]) -> np.ndarray:
    values = from_tensor(tensor, field=field)
    if values.dtype.name not in dtypes:
        raise field_error(f"{field}.dtype", f"is {values.dtype.name}: send {' or '.join(dtypes)}")
    if values.shape != (length,):
        raise field_error(f"{field}.shape", f"is {list(values.shape)}, the input has {length} tokens: send [{length}]")
    return values


def parse_tokens(data: bytes, field: str, facts: ModelFacts) -> np.ndarray:
    """Token ids of shape [n], n at least 1."""
    tokens = unpack_tokens(data, field=field)
    if not len(tokens):
        raise field_error(field, "has no tokens: send at least one")
    return _check_ids(tokens, field, facts)


def parse_prompt(data: bytes, field: str, facts: ModelFacts, *, room: int) -> list[int]:
    """Token ids of a prompt that leaves `room` tokens of the longest sequence free."""
    tokens = parse_tokens(data, field, facts)
    _check_length(tokens, field, facts, room=room)
    return tokens.tolist()


def _check_length(tokens: np.ndarray, field: str, facts: ModelFacts, *, room: int) -> None:
    most = facts.max_sequence_tokens - room
    if len(tokens) > most:
        raise field_error(field, f"has {len(tokens)} tokens, the model takes at most {most} here: cut it")


def _check_ids(tokens: np.ndarray, field: str, facts: ModelFacts) -> np.ndarray:
    bad = np.flatnonzero((tokens < 0) | (tokens >= facts.vocab_size))
    if bad.size:
        problem = f"is {tokens[bad[0]]}, outside the vocabulary: ids are 0 to {facts.vocab_size - 1}"
        raise field_error(f"{field}[{bad[0]}]", problem)
    return tokens


def check_tokens_in_flight(tokens: int, limit: int, field: str, fix: str) -> None:
    """Refuses a request that no session could ever have in flight: trying again would not help."""
    if tokens > limit:
        raise field_error(field, f"makes {tokens} tokens, more than the {limit} that a session may have: {fix}")


def parse_adam(adam: training_pb2.AdamParams) -> dict[str, float]:
    """The arguments of the library's AdamParams, every default of the contract filled in: Tinker's are others."""
    defaults = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "grad_clip_norm": 0.0}
    values = {name: getattr(adam, name) if adam.HasField(name) else value for name, value in defaults.items()}
    for name in ("beta1", "beta2"):
        if values[name] >= 1:
            raise field_error(f"adam.{name}", f"is {values[name]:g}, must be below 1")
    if values["eps"] == 0:
        raise field_error("adam.eps", "is 0, must be above 0: a weight without gradient would become NaN; use 1e-8")
    values["grad_clip_norm"] = values["grad_clip_norm"] or _NO_CLIP_NORM
    return {"learning_rate": adam.learning_rate, **values}


def parse_ttl(request: training_pb2.SaveCheckpointRequest) -> float | None:
    """Seconds that the checkpoint is kept; None: until it is deleted."""
    if not request.HasField("ttl"):
        return None
    seconds = request.ttl.seconds + request.ttl.nanos / 1e9
    if not 0 < seconds <= _MAX_TTL_SECONDS:
        raise field_error("ttl", f"is {seconds:g} s, give more than 0 and at most 100 years, or leave it out")
    return seconds


def ttl_at_tinker(seconds: float | None) -> int | None:
    """The time that Tinker is told; it takes an hour at least, and what is asked for is no shorter for it."""
    if seconds is None or seconds > LONGEST_TTL_SECONDS:
        return None
    return max(SHORTEST_TTL_SECONDS, math.ceil(seconds))


def parse_sampling(params: sampling_pb2.SamplingParams, facts: ModelFacts) -> dict[str, Any]:
    """The arguments of the library's SamplingParams."""
    if params.stop_tokens:
        _check_ids(np.array(params.stop_tokens), "params.stop_tokens", facts)
    return {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature if params.HasField("temperature") else 1.0,
        "top_p": params.top_p if params.HasField("top_p") else 1.0,
        "top_k": params.top_k or -1,
        "seed": params.seed,
        # An empty list means that only length ends it; none would mean the model's own end tokens.
        "stop": list(params.stop_tokens),
    }


def sampled_tokens(prompt: Sequence[int], request: Any, facts: ModelFacts) -> int:
    """The most tokens that sampling reads and writes; the prompt counts once."""
    room = facts.max_sequence_tokens - len(prompt)
    return len(prompt) + request.num_samples * min(request.params.max_tokens, room)
