"""The adapter keeps the contracts of training and sampling."""

from __future__ import annotations

from pathlib import Path

from crucible_adapters.tinker.options import TinkerOptions
from crucible_adapters.tinker.sampling import TinkerSampling
from crucible_adapters.tinker.training import TinkerTraining
from crucible_kit.adapter import AdapterContext
from crucible_kit.conformance import Verdict, run_suite, settings_of
from tests.conformance.bindings import BINDINGS
from tests.tinker.conftest import KEY, MODEL
from tests.tinker.server import TinkerServer

# Longer than a machine stands still.
_HELD_SECONDS = 6.0
_BINDING = {"training": "object", "sampling": "unix socket"}
# What the kit does for every port alike is shown on one of them.
_ONLY = {"training": ("TRN",), "sampling": ()}


async def test_the_suites_pass(server: TinkerServer, model: Path, tmp_path: Path) -> None:
    models = {MODEL: {"name": "tiny/qwen3", "folder": str(model)}}
    options = TinkerOptions.model_validate(
        {"base_url": server.address, "models": models, "hold_seconds": _HELD_SECONDS, "max_operations_in_flight": 16}
    )
    context = AdapterContext(data_dir=tmp_path, secrets={"api_key": KEY})
    made = [TinkerTraining(options, context), TinkerSampling(options, context)]
    servicers = {each.description.port: each for each in made}
    capabilities = {port: each.description.capabilities for port, each in servicers.items()}
    try:
        for port, binding in _BINDING.items():
            async with BINDINGS[binding](servicers, capabilities) as channel:
                settings = settings_of(port, {"largest_message_bytes": 1024 * 1024})
                report = await run_suite(channel, port, settings, only=_ONLY[port])
                failed = [each for each in report.results if each.verdict is Verdict.FAILED]
                assert not failed, {each.requirement.id: each.problem for each in failed}
                assert len(report.ids(Verdict.PASSED)) > len(report.results) * 0.8
        assert not server.open_models, "models that closed sessions left at Tinker"
    finally:
        for each in made:
            await each.close()
