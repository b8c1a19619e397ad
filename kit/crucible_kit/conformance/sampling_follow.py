"""A training session of the same adapter, for sampling sessions of its weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crucible.port.training.v1 import training_pb2
from crucible.type.v1 import datum_pb2
from crucible_kit.conformance import training_session
from crucible_kit.conformance.expect import CheckSkipped
from crucible_kit.conformance.sampling import Sampling, base_model

_LEARNING_RATE = 0.05


class Trainer:
    """Trains the model that is sampled from."""

    def __init__(self, session: training_session.Session, context: training_session.Training) -> None:
        self._session = session
        self._context = context
        self.id = session.id

    @classmethod
    async def open(cls, context: Sampling) -> Trainer:
        """A new training session. Raises CheckSkipped when the adapter does not serve the training port."""
        if not context.serves("training"):
            raise CheckSkipped("the adapter does not serve the port training")
        settings = training_session.TrainingSettings(
            base_model=base_model(context), call_seconds=context.settings.call_seconds
        )
        beside = context.beside(training_session.SUITE, settings)
        return cls(await training_session.open_session(beside), beside)

    async def logprobs(self, tokens: Sequence[int]) -> NDArray[np.floating]:
        """logprobs of tokens[1:] at the weights now."""
        return await self._session.logprobs([_datum(tokens)])

    async def learn(self, tokens: Sequence[int]) -> None:
        """One large step towards these tokens."""
        await self._session.train([_datum(tokens)], learning_rate=_LEARNING_RATE)

    async def save(self) -> str:
        """The address of a checkpoint, which is deleted after the check."""
        return (await self._session.save(self._context.name(), weights_only=True)).uri

    async def delete(self, uri: str) -> None:
        """Deletes a checkpoint."""
        await self._context.stub.DeleteCheckpoint(training_pb2.DeleteCheckpointRequest(uri=uri))


def _datum(tokens: Sequence[int]) -> datum_pb2.Datum:
    return training_session.datum(tokens[:-1], tokens[1:], np.ones(len(tokens) - 1))
