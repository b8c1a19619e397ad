"""Requests into what the engine computes on. Everything that can be checked is checked here, before acceptance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crucible.port.sampling.v1 import sampling_pb2
from crucible.port.training.v1 import training_pb2
from crucible.type.v1 import datum_pb2
from crucible_adapters import requests
from crucible_adapters.requests import check_adam, check_ids, parse_tokens
from crucible_adapters.torch_engine.batching import Datum
from crucible_adapters.torch_engine.loss import TokenLoss, get_loss
from crucible_adapters.torch_engine.models import LoadedModel
from crucible_adapters.torch_engine.optimizer import AdamWOptions
from crucible_adapters.torch_engine.sampler import SamplingOptions
from crucible_kit.errors import field_error
from crucible_kit.settings import unknown_key


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
    parsed = requests.parse_data(data, loss.inputs, vocab_size=model.vocab_size, max_tokens=model.max_positions)
    return [Datum(tokens=each.tokens.astype(np.int64), targets=each.targets, inputs=each.inputs) for each in parsed]


def parse_adam(adam: training_pb2.AdamParams) -> AdamWOptions:
    """One step's options, defaults filled in."""
    check_adam(adam)
    given = {
        field: getattr(adam, field)
        for field in ("beta1", "beta2", "eps", "weight_decay", "grad_clip_norm")
        if adam.HasField(field)
    }
    return AdamWOptions(learning_rate=adam.learning_rate, **given)


def parse_prompt(data: bytes, field: str, model: LoadedModel, *, room: int = 0) -> NDArray[np.integer]:
    """Token ids of a prompt that leaves `room` tokens of the model's longest sequence free."""
    tokens = parse_tokens(data, field, model.vocab_size)
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
        check_ids(np.array(params.stop_tokens), "params.stop_tokens", model.vocab_size)
    return SamplingOptions(max_tokens=params.max_tokens, stop_tokens=frozenset(params.stop_tokens), **given)
