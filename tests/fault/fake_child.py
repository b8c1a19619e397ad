"""The fakes in a process of their own that starts in a moment: it dies, hangs and is started again as the engine is."""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

from crucible_kit.adapter import AdapterContext, ProcessAdapter
from crucible_kit.faults import fault_point
from crucible_kit.serving import serve_ports
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


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--parent-pipe", action="store_true", required=True)
    arguments = parser.parse_args()
    context = AdapterContext(data_dir=arguments.work_dir)
    servicers = {"training": MortalTraining(None, context), "sampling": SamplingAdapter(None, context)}
    served = await serve_ports(
        servicers, arguments.listen, name=FAKE_ENGINE.name, capabilities=FAKE_ENGINE.capabilities
    )
    ended, loop = asyncio.Event(), asyncio.get_running_loop()

    def watch_parent() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch_parent, daemon=True).start()
    await ended.wait()
    await served.stop(0.1)


if __name__ == "__main__":
    asyncio.run(main())
