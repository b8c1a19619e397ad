"""What a call of a library costs through the port: math_verify with 64 in flight, beside the same in this process.

In this process one call follows another, as the library wants it: its time limit is an alarm, and there is one alarm.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from benchmarks.processes import serving
from benchmarks.report import Table
from benchmarks.scale import Scale
from benchmarks.training_step import rotated
from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible.port.python_bridge.v1 import python_bridge_pb2_grpc
from crucible_adapters.python_bridge.options import WorkersOptions
from crucible_adapters.python_bridge.workers import PythonWorkers
from crucible_kit.adapter import AdapterContext
from crucible_kit.channel import ObjectChannel
from crucible_kit.ports import PORTS

_HERE, _AGAIN = "in this process", "in this process again (A/A)"
_ONE, _OBJECT, _SERVER = "adapter, 1 in flight", "adapter, 64 in flight", "kitchen over TCP, 64 in flight"
_IN_FLIGHT = 64
Pairs = list[tuple[str, str]]
Turn = Callable[[Pairs], Awaitable[list[bool]]]


async def measure(scale: Scale, folder: Path) -> list[Table]:
    """One table."""
    workers = os.cpu_count() or 1
    async with AsyncExitStack() as stack:
        adapter = PythonWorkers(WorkersOptions(libraries=("math_verify",)), AdapterContext(data_dir=folder))
        stack.push_async_callback(adapter.close)
        near = PORTS["python_bridge"].stub(ObjectChannel({PORTS["python_bridge"].service.full_name: adapter}))
        manifest = folder / "manifest.json"  # JSON is YAML
        manifest.write_text(json.dumps({"ports": {"python_bridge": "builtin:workers"}}))
        server = await stack.enter_async_context(
            serving(folder / "data", "--manifest", str(manifest), "--max-client-python-sessions", str(_IN_FLIGHT))
        )
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        far = python_bridge_pb2_grpc.PythonBridgeServiceStub(channel)
        near_sessions, far_sessions = await _sessions(near, _IN_FLIGHT), await _sessions(far, _IN_FLIGHT)
        turns: dict[str, Turn] = {
            _HERE: _here,
            _ONE: partial(_there, near, await _sessions(near, 1)),
            _OBJECT: partial(_there, near, near_sessions),
            _SERVER: partial(_there, far, far_sessions),
            _AGAIN: _here,
        }
        table = Table(
            title=f"math_verify through the port python_bridge, {_IN_FLIGHT} in flight",
            about=(
                f"Calls per second of verify_texts (parse twice, verify once), {scale.calls} different pairs in each "
                "turn, others than in the turns before: the library keeps the last that it has parsed. In this "
                "process one after another, with the library's own functions; through the port in "
                f"{_IN_FLIGHT} sessions, each with a process of its own, of which {workers} run at a time, one for "
                "each processor. The answers were compared."
            ),
            unit="calls/s",
        )
        for number in range(-1, scale.rounds):
            # The round before the first warms up.
            pairs = _pairs(scale.calls, (number + 1) * scale.calls)
            expected: list[bool] = []
            for system, turn in rotated(list(turns.items()), number):
                start = time.perf_counter()
                answers = await turn(pairs)
                seconds = time.perf_counter() - start
                expected = expected or answers
                if answers != expected:
                    raise RuntimeError(f"{system} has other answers")
                if number >= 0:
                    table.add(system, [len(pairs) / seconds])
    table.ratio("A/A: in this process over itself", _AGAIN, _HERE)
    for system in (_ONE, _OBJECT, _SERVER):
        table.ratio(f"{system} over in this process", system, _HERE)
    return [table]


def _pairs(count: int, first: int) -> Pairs:
    """Gold answers and texts with answers, all different, half of them right; others for each `first`."""
    chance = random.Random(first)
    pairs: Pairs = []
    for number in range(first, first + count):
        a, b, c = chance.randint(2, 999), chance.randint(2, 999), number + 2
        forms = [
            (
                rf"$\frac{{{a}}}{{{c}}}$",
                rf"We get $\boxed{{\frac{{{a * b}}}{{{b * c}}}}}$",
                rf"It is $\frac{{{a}}}{{{c + 1}}}$",
            ),
            (rf"$(x+{c})^2$", rf"So $\boxed{{x^2 + {2 * c}x + {c * c}}}$", rf"So $x^2 + {c}x + {c * c}$"),
            (f"{a * c}", f"The final answer is {a * c}. I hope it is correct.", f"the answer is {a * c + 1}"),
            (rf"$\{{{a}, {c + 100_000}\}}$", rf"$\boxed{{\{{{c + 100_000}, {a}\}}}}$", rf"$\{{{a}, {b + 500_000}\}}$"),
        ]
        gold, right, wrong = forms[number % len(forms)]
        pairs.append((gold, right if number % 8 < 4 else wrong))
    return pairs


async def _here(pairs: Pairs) -> list[bool]:
    from math_verify import parse, verify

    return [verify(parse(gold), parse(answer)) for gold, answer in pairs]


async def _sessions(stub: Any, count: int) -> list[str]:
    requests = [pb.OpenSessionRequest(request_id=str(uuid.uuid4())) for _ in range(count)]
    return [(await stub.OpenSession(each)).session_id for each in requests]


async def _there(stub: Any, sessions: list[str], pairs: Pairs) -> list[bool]:
    """Each session makes its share of the calls, one after another."""
    answers = [False] * len(pairs)

    async def work(place: int) -> None:
        for number in range(place, len(pairs), len(sessions)):
            request = pb.CallFunctionRequest(session_id=sessions[place], library="math_verify", function="verify_texts")
            for text in pairs[number]:
                request.args.add(text=text)
            answers[number] = (await stub.CallFunction(request)).result.boolean

    await asyncio.gather(*map(work, range(len(sessions))))
    return answers
