"""A small model of the Elixir adapter, and data for it."""

from __future__ import annotations

import numpy as np

from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import datum_pb2
from crucible_kit.tensors import pack_tokens, to_tensor
from tests.contract.toy_reference import Sequence

MODEL, VOCABULARY = "toy-64", 64
CROSS_ENTROPY = tp.LossFunction(name="cross_entropy")


def random_data(lengths: list[int], *, seed: int = 0, vocabulary: int = VOCABULARY) -> list[Sequence]:
    """Sequences with weights of any sign, every third 0."""
    rng = np.random.default_rng(seed)
    data = []
    for length in lengths:
        ids = rng.integers(0, vocabulary, length + 1).astype(np.int32)
        weights = rng.normal(size=length).astype(np.float32)
        weights[::3] = 0
        data.append(Sequence(tokens=ids[:-1], targets=ids[1:], weights=weights))
    return data


def to_proto(data: list[Sequence]) -> list[datum_pb2.Datum]:
    return [
        datum_pb2.Datum(
            model_input=datum_pb2.ModelInput(chunks=[datum_pb2.ModelInputChunk(tokens_int32=pack_tokens(each.tokens))]),
            loss_fn_inputs={"target_tokens": to_tensor(each.targets), "weights": to_tensor(each.weights)},
        )
        for each in data
    ]
