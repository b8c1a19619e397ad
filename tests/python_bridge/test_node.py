"""The libraries from Node, over gRPC and a real server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.contract.processes import HAS_NODE, TYPESCRIPT, WHY_NOT_NODE
from tests.system.harness import serving

pytestmark = pytest.mark.skipif(not HAS_NODE, reason=WHY_NOT_NODE)

MANIFEST = """
ports:
  python_bridge: {adapter: "builtin:workers", options: {cpu_seconds: 1, call_timeout_seconds: 60}}
"""
CALLS: list[tuple[dict[str, Any], Any]] = [
    ({"call": "math_verify.verify_texts", "args": [r"$\frac{1}{2}$", "The answer is 0.5"]}, True),
    ({"call": "math_verify.parse", "args": ["it is $x^2$"], "as": "gold"}, "list"),
    ({"call": "math_verify.parse", "args": [r"so $\boxed{x \cdot x}$"], "as": "answer"}, "list"),
    ({"call": "math_verify.verify", "args": [{"$ref": "gold"}, {"$ref": "answer"}], "kwargs": {"strict": False}}, True),
    ({"call": "sympy.solve", "args": ["x^2 = 2", "x"]}, ["-sqrt(2)", "sqrt(2)"]),
    ({"call": "sympy.parse", "args": ["(x + 1)^2"], "as": "square"}, "sympy.core.power.Pow"),
    ({"method": "expand", "of": "square"}, "x**2 + 2*x + 1"),
    ({"attribute": "is_number", "of": "square"}, False),
    ({"call": "sympy.substitute", "args": [{"$ref": "square"}, {"x": 2}]}, "9"),
    ({"call": "sympy.number", "args": ["1/4"]}, 0.25),
    ({"stream": "sympy.primes", "args": [10, 20]}, [11, 13, 17, 19]),
    ({"call": "pylatexenc.latex_to_text", "args": [r"caf\'e $\alpha$"]}, "café α"),
    ({"release": "square"}, None),
]
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"method": "expand", "of": "square"}, "NOT_FOUND", "REF_NOT_FOUND"),
    ({"call": "sympy.sympify", "args": ["__import__('os')"]}, "NOT_FOUND", "FUNCTION_NOT_IN_MANIFEST"),
    ({"call": "os.system", "args": ["true"]}, "NOT_FOUND", "LIBRARY_NOT_IN_MANIFEST"),
    ({"call": "sympy.is_prime", "args": ["7"]}, "INVALID_ARGUMENT", "ARGUMENT_UNPARSEABLE"),
    ({"call": "sympy.parse", "args": ["x.__class__"]}, "FAILED_PRECONDITION", "PYTHON_EXCEPTION"),
    ({"call": "sympy.simplify", "args": ["9**9**9**9"]}, "DEADLINE_EXCEEDED", "CALL_TIMEOUT"),
    ({"attribute": "args", "of": "gold"}, "NOT_FOUND", "REF_NOT_FOUND"),
]


def test_node_calls_python_libraries(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(MANIFEST, encoding="utf-8")
    lines = [json.dumps(call) for call, *_ in [*CALLS, *REFUSED, CALLS[0]]]
    with serving(tmp_path / "data", "--manifest", str(manifest)) as server:
        done = subprocess.run(
            ["node", str(TYPESCRIPT / "python_bridge.mjs"), server.address],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each.get("result", each) for each in answers[: len(CALLS)]] == [result for _, result in CALLS]
    refused = [(each["error"]["code"], each["error"]["reason"]) for each in answers[len(CALLS) : -1]]
    assert refused == [(code, reason) for _, code, reason in REFUSED]
    # A typing error is told with what there is.
    assert "not in the manifest; sympy has " in answers[len(CALLS) + 1]["error"]["message"]
    # After the call that was stopped, the session goes on.
    assert answers[-1] == {"result": True}
