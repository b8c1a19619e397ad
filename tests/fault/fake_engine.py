"""The training and sampling fakes as adapters that a server's manifest can name: a server that dies with its engine."""

from __future__ import annotations

import hashlib
from typing import Any

from crucible.port.training.v1 import training_pb2
from crucible_kit.adapter import AdapterContext, AdapterDescription
from tests.workflow.fake_training import FakeSampling, FakeTraining
from tests.workflow.kitchen import TRAINING

MANIFEST = """
profile: test
ports:
  training: "python:tests.fault.fake_engine:TrainingAdapter"
  sampling: "python:tests.fault.fake_engine:SamplingAdapter"
"""


class TrainingAdapter(FakeTraining):
    description = AdapterDescription(name="fake-training", port="training", capabilities=tuple(sorted(TRAINING)))

    def __init__(self, options: Any, context: AdapterContext) -> None:
        super().__init__()

    def _pass(self, request: Any, seen: list[tuple[int, ...]]) -> training_pb2.ForwardResult:
        result = super()._pass(request, seen)
        # As a real model's, the loss is a function of weights and data, not of the way there.
        weights = self._sessions[request.session_id].weights
        rows = b"".join(each.SerializeToString(deterministic=True) for each in request.data)
        result.loss = int.from_bytes(hashlib.sha256(weights + rows).digest()[:4], "little") / 2**32
        return result

    async def close(self) -> None:
        pass


class SamplingAdapter(FakeSampling):
    description = AdapterDescription(name="fake-sampling", port="sampling", capabilities=("sampling.follow",))

    def __init__(self, options: Any, context: AdapterContext) -> None:
        super().__init__()

    async def close(self) -> None:
        pass
