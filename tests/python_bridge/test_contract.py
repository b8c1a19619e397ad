"""The port's contract tests, as the fake passes them, on the workers: all but those that need the fake's own clock."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract import test_python_bridge as contract
from tests.python_bridge.conftest import TOY, bridge

MANIFESTS = tuple(str(TOY.with_name(f"{name}.yaml")) for name in ("absent", "math", "toy"))
# Limits are another adapter's, and time goes by otherwise: test_sessions.py has the same of this one.
OTHERWISE = {
    "test_a_call_that_takes_too_long_loses_the_objects",
    "test_a_call_that_uses_too_much_memory_loses_the_objects",
    "test_limits_above_the_adapter_s_are_refused",
    "test_sessions_open_once_close_and_expire",
    "test_the_manifest_is_listed",
}
DTYPES = ("float32", "float64", "float16", "int32", "int64", "uint8", "bool")


def contract_tests() -> list[Callable[..., Any]]:
    found = [each for name, each in vars(contract).items() if name.startswith("test_") and name not in OTHERWISE]
    return [each for each in found if inspect.iscoroutinefunction(each)]


async def test_the_contract_holds(tmp_path: Path) -> None:
    """One adapter for all of them: starting one takes longer than they do."""
    assert len(contract_tests()) >= 15
    async with bridge(tmp_path, manifests=MANIFESTS, max_sessions=3) as made:
        for test in contract_tests():
            wanted = inspect.signature(test).parameters
            for dtype in DTYPES if "dtype" in wanted else ("",):
                session = await contract.opened(made.stub) if "session" in wanted else None
                given = {"stub": made.stub, "session": session, "dtype": dtype}
                try:
                    await test(**{name: given[name] for name in wanted})
                except (AssertionError, pytest.fail.Exception) as error:
                    raise AssertionError(test.__name__) from error
                made.adapter._runner.free(made.adapter._sessions.close_all())
