"""Input of every hostile class ends at its limit, and the next call of the same session is as any other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration

from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible_kit.errors import KitchenError
from tests.contract.test_python_bridge import Session, opened
from tests.python_bridge.conftest import TOY, bridge


class Hostile(NamedTuple):
    """One call, and how it ends.

    Attributes:
        reason: of its error; empty: it has none.
        fact: name of one of the error's metadata.
    """

    function: str
    arguments: tuple[Any, ...]
    reason: str
    fact: str = ""


MIB = 1024 * 1024
CLASSES = {
    "a huge power": Hostile("sympy.simplify", ("9**9**9**9",), "CALL_TIMEOUT", "limit_cpu_seconds"),
    "an endless simplify": Hostile(
        "sympy.simplify",
        ("+".join(f"sqrt(sin(x*{n})+cos(y**{n}))/(tan(z*{n})+x**{n}*log(y+{n}))" for n in range(1, 15)),),
        "CALL_TIMEOUT",
        "limit_cpu_seconds",
    ),
    "waiting for ever": Hostile("toy.sleep", (), "CALL_TIMEOUT", "limit_seconds"),
    "nested brackets": Hostile("sympy.parse", ("(" * 9000 + "x" + ")" * 9000,), "PYTHON_EXCEPTION", "exception_class"),
    "nested LaTeX": Hostile("pylatexenc.parse", ("{" * 5_000,), "PYTHON_EXCEPTION", "exception_class"),
    "recursion": Hostile("toy.recurse", (), "PYTHON_EXCEPTION", "exception_class"),
    "memory at once": Hostile("toy.allocate", (2**33,), "MEMORY_LIMIT", "limit_bytes"),
    "memory bit by bit": Hostile("toy.grow", (), "MEMORY_LIMIT", "limit_bytes"),
    "an answer without end": Hostile("pylatexenc.text_to_latex", ("%" * 40_000,), "RESULT_TOO_LARGE", "limit_bytes"),
    "a crash": Hostile("toy.crash", (), "WORKER_DIED", "status"),
    "an exit": Hostile("toy.leave", (), "WORKER_DIED", "status"),
    "code as text": Hostile("sympy.parse", ("__import__('os')._exit(0)",), "PYTHON_EXCEPTION", "exception_class"),
    "starting a process": Hostile("toy.run_command", (), "PYTHON_EXCEPTION", "exception_class"),
    "forking": Hostile("toy.fork", (), "PYTHON_EXCEPTION", "exception_class"),
    "code in C": Hostile("toy.load_c", (), "PYTHON_EXCEPTION", "exception_class"),
    "writing a file": Hostile("toy.write_file", ("/tmp/python-bridge-was-here",), "PYTHON_EXCEPTION"),
    "connecting": Hostile("toy.connect", (9,), "PYTHON_EXCEPTION"),
    "an error without a text": Hostile("toy.fail_without_text", (), "PYTHON_EXCEPTION"),
    "a call to leave": Hostile("toy.system_exit", (), "PYTHON_EXCEPTION"),
    "a number of 20,000 digits": Hostile("math_verify.parse", ("9" * 20_000,), ""),
}


async def test_each_class_ends_at_its_limit_and_the_next_call_is_normal(tmp_path: Path) -> None:
    libraries = ("math_verify", "pylatexenc", "sympy")
    limits: dict[str, Any] = {"cpu_seconds": 1, "memory_limit_bytes": 128 * MIB, "max_result_bytes": 64 * 1024}
    async with bridge(tmp_path, libraries=libraries, manifests=(str(TOY),), **limits) as made:
        await asyncio.gather(*(_ends(made.stub, name, hostile) for name, hostile in CLASSES.items()))
        assert not Path("/tmp/python-bridge-was-here").exists()


async def _ends(stub: Any, name: str, hostile: Hostile) -> None:
    waits = hostile.fact == "limit_seconds"
    session = await opened(stub, **({"call_timeout": Duration(nanos=300_000_000)} if waits else {}))
    reason, metadata = "", {}
    try:
        await session.call(hostile.function, *hostile.arguments)
    except KitchenError as error:
        reason, metadata = error.reason, error.metadata
    assert reason == hostile.reason, (name, metadata)
    assert not hostile.fact or hostile.fact in metadata, (name, metadata)
    if waits:
        # Its limit is too short for a machine that stands still now and then; the next session has the longer one.
        await session.close()
        session = await opened(stub)
    await _is_normal(session)


async def _is_normal(session: Session) -> None:
    assert await session.call("math_verify.verify_texts", "$\\frac{1}{2}$", "the answer is 0.5") is True
    counter = await session.call("toy.counter", 4, mode=pb.RESULT_MODE_REFERENCE)
    assert await session.method(counter, "increment") == 5
