"""Requests of both ports, checked, as what the library takes. Everything that can be checked is checked here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from crucible.port.sampling.v1 import sampling_pb2
from crucible.port.training.v1 import training_pb2
from crucible_adapters.requests import TARGETS, check_adam, check_ids, check_tokens_in_flight, parse_data, parse_tokens
from crucible_adapters.tinker.models import ModelFacts
from crucible_kit.errors import field_error
from crucible_kit.settings import unknown_key

SHORTEST_TTL_SECONDS, LONGEST_TTL_SECONDS = 3600, 10 * 365 * 86400
"""What Tinker takes."""
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
    most = facts.max_sequence_tokens
    rows = parse_data(request.data, loss.inputs, vocab_size=facts.vocab_size, max_tokens=most)
    tokens = sum(len(each.tokens) for each in rows)
    check_tokens_in_flight(tokens, max_tokens, "data", "send it in several calls")
    from tinker import types

    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(row.tokens.tolist()),
            loss_fn_inputs={
                name: types.TensorData.from_numpy(each) for name, each in {TARGETS: row.targets, **row.inputs}.items()
            },
        )
        for row in rows
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


def parse_prompt(data: bytes, field: str, facts: ModelFacts, *, room: int) -> list[int]:
    """Token ids of a prompt that leaves `room` tokens of the longest sequence free."""
    tokens = parse_tokens(data, field, facts.vocab_size)
    most = facts.max_sequence_tokens - room
    if len(tokens) > most:
        raise field_error(field, f"has {len(tokens)} tokens, the model takes at most {most} here: cut it")
    return tokens.tolist()


def parse_adam(adam: training_pb2.AdamParams) -> dict[str, float]:
    """The arguments of the library's AdamParams, every default of the contract filled in: Tinker's are others."""
    check_adam(adam)
    defaults = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "grad_clip_norm": 0.0}
    values = {name: getattr(adam, name) if adam.HasField(name) else value for name, value in defaults.items()}
    values["grad_clip_norm"] = values["grad_clip_norm"] or _NO_CLIP_NORM
    return {"learning_rate": adam.learning_rate, **values}


def ttl_at_tinker(seconds: float | None) -> int | None:
    """The time that Tinker is told; it takes an hour at least, and what is asked for is no shorter for it."""
    if seconds is None or seconds > LONGEST_TTL_SECONDS:
        return None
    return max(SHORTEST_TTL_SECONDS, math.ceil(seconds))


def parse_sampling(params: sampling_pb2.SamplingParams, facts: ModelFacts) -> dict[str, Any]:
    """The arguments of the library's SamplingParams."""
    if params.stop_tokens:
        check_ids(np.array(params.stop_tokens), "params.stop_tokens", facts.vocab_size)
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
