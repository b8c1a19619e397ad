"""A training adapter that stops where a test can look: runs on it are at work until the gate opens."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from crucible_kit.adapter import AdapterContext
from tests.fault.fake_engine import TrainingAdapter

TRAINING = "python:tests.server.gated:GatedTraining"
UNGATED = "python:tests.fault.fake_engine:TrainingAdapter"
MANIFEST = f"""
profile: test
ports:
  training: "{TRAINING}"
  sampling: "python:tests.fault.fake_engine:SamplingAdapter"
"""


class GatedTraining(TrainingAdapter):
    """Takes no gradients before the gate is open.

    Attributes:
        reached: set when a call waits at the gate.
        gate: set to open it.
    """

    reached: ClassVar[asyncio.Event]
    gate: ClassVar[asyncio.Event]

    def __init__(self, options: Any, context: AdapterContext) -> None:
        super().__init__(options, context)
        GatedTraining.reached, GatedTraining.gate = asyncio.Event(), asyncio.Event()

    async def ForwardBackward(self, request: Any, context: Any) -> Any:
        self.reached.set()
        await self.gate.wait()
        return await super().ForwardBackward(request, context)
