"""Requests of training and sampling, checked against the toy model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crucible.port.sampling.v1 import sampling_pb2
from crucible.port.training.v1 import training_pb2
from crucible.type.v1 import datum_pb2
from crucible_adapters import requests
from crucible_adapters.fakes.toy.engine import ToyOptions
from crucible_adapters.fakes.toy.losses import LOSSES, Loss
from crucible_adapters.fakes.toy.model import TARGET, AdamOptions, Lora, SamplingOptions
from crucible_adapters.fakes.toy.session import Datum
from crucible_adapters.requests import check_adam, check_ids, parse_tokens
from crucible_kit.errors import field_error


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
    parsed = requests.parse_data(
        data, loss.inputs, vocab_size=options.vocab_size, max_tokens=options.max_sequence_tokens
    )
    return [Datum(each.tokens.astype(np.int64), each.targets, _in_float64(each.inputs)) for each in parsed]


def _in_float64(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values.astype(np.float64) for name, values in inputs.items()}


def parse_prompt(data: bytes, field: str, options: ToyOptions, *, room: int) -> np.ndarray:
    """Token ids of a prompt that leaves `room` tokens of the longest sequence free."""
    tokens = parse_tokens(data, field, options.vocab_size)
    most = options.max_sequence_tokens - room
    if len(tokens) > most:
        raise field_error(field, f"has {len(tokens)} tokens, the model takes at most {most} here: cut the prompt")
    return tokens


def parse_adam(adam: training_pb2.AdamParams) -> AdamOptions:
    """One step's options, defaults filled in."""
    check_adam(adam)
    given = {name: getattr(adam, name) for name in AdamOptions._fields[1:] if adam.HasField(name)}
    return AdamOptions(adam.learning_rate, **given)


def parse_sampling(params: sampling_pb2.SamplingParams, options: ToyOptions) -> SamplingOptions:
    """How to choose tokens, defaults filled in."""
    if params.stop_tokens:
        check_ids(np.array(params.stop_tokens), "params.stop_tokens", options.vocab_size)
    names = ("temperature", "top_p", "top_k", "seed")
    given = {name: getattr(params, name) for name in names if params.HasField(name)}
    return SamplingOptions(params.max_tokens, stop_tokens=frozenset(params.stop_tokens), **given)
