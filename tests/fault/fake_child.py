"""The fakes in a process of their own that starts in a moment: it dies, hangs and is started again as the engine is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_kit.adapter import AdapterContext, ProcessAdapter
from crucible_kit.adapter_process import run_process
from crucible_kit.faults import fault_point
from tests.fault.fake_engine import SamplingAdapter, TrainingAdapter

FAKE_ENGINE = ProcessAdapter(
    name="fake-engine",
    ports=("training", "sampling"),
    module="tests.fault.fake_child",
    capabilities={
        "training": TrainingAdapter.description.capabilities,
        "sampling": SamplingAdapter.description.capabilities,
    },
)
MANIFEST = """
profile: test
ports:
  training: "python:tests.fault.fake_child:FAKE_ENGINE"
  sampling: "python:tests.fault.fake_child:FAKE_ENGINE"
"""


class MortalTraining(TrainingAdapter):
    """Passes the engine's fault points."""

    async def ForwardBackward(self, request: Any, context: Any) -> Any:
        fault_point("engine.forward_backward.mid")
        return await super().ForwardBackward(request, context)

    async def OptimStep(self, request: Any, context: Any) -> Any:
        fault_point("engine.optim_step.before")
        answer = await super().OptimStep(request, context)
        fault_point("engine.optim_step.after")
        return answer

    async def SaveCheckpoint(self, request: Any, context: Any) -> Any:
        fault_point("engine.publish.before")
        answer = await super().SaveCheckpoint(request, context)
        fault_point("engine.publish.after")
        return answer

    async def LoadCheckpoint(self, request: Any, context: Any) -> Any:
        fault_point("engine.load.mid")
        return await super().LoadCheckpoint(request, context)


async def make(options: Any, work_dir: Path) -> Mapping[str, Any]:
    context = AdapterContext(data_dir=work_dir)
    return {"training": MortalTraining(None, context), "sampling": SamplingAdapter(None, context)}


if __name__ == "__main__":
    run_process(FAKE_ENGINE, make)
