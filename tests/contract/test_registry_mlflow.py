"""`builtin:mlflow` for the registry: what MLflow's own registry then holds."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

import pytest

from crucible.port.registry.v1 import registry_pb2 as pb
from crucible_adapters.metrics.mlflow import MlflowMetricsStore
from crucible_adapters.mlflow_server import MlflowExperimentOptions
from crucible_adapters.registry.mlflow import MlflowModelRegistry, model_name
from crucible_kit.adapter import AdapterContext
from crucible_kit.conformance import Verdict, requirements_of, run_suite, settings_of
from crucible_kit.errors import UnavailableError
from tests.conformance.bindings import BINDINGS
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.contract.test_metrics import point, record
from tests.contract.test_registry import get, register, version
from tests.kit.clocks import Waits
from tests.kit.mlflow import Mlflow
from tests.kit.scripted import answer

EXPERIMENT, STAGING, PRODUCTION, ARCHIVED = (
    pb.VERSION_STAGE_EXPERIMENT,
    pb.VERSION_STAGE_STAGING,
    pb.VERSION_STAGE_PRODUCTION,
    pb.VERSION_STAGE_ARCHIVED,
)
AWAY = answer("503 Service Unavailable", b"")


@pytest.fixture
def line(request: pytest.FixtureRequest) -> str:
    """A model line for each test."""
    return f"line-{zlib.crc32(request.node.name.encode()):08x}"


def options(server: Mlflow, experiment: str) -> MlflowExperimentOptions:
    return MlflowExperimentOptions(tracking_uri=server.address, experiment=experiment, timeout_seconds=100)


def make(server: Mlflow, context: AdapterContext, experiment: str) -> MlflowModelRegistry:
    return MlflowModelRegistry(options(server, experiment), context, clock=Waits().clock)


@pytest.fixture
async def stub(mlflow: Mlflow, context: AdapterContext, line: str, local: Binding) -> Any:
    return await local.stub(make(mlflow, context, line))


async def promote(stub: Any, given: pb.ModelVersion, stage: Any) -> None:
    await stub.PromoteVersion(pb.PromoteVersionRequest(version_id=given.version_id, stage=stage))


def there(server: Mlflow, line: str) -> list[Any]:
    """MLflow's versions, by number."""
    found = server.registry.search_model_versions(f"name = '{model_name(line)}'")
    return sorted(found, key=lambda each: each.version)


def aliases(server: Mlflow, line: str) -> dict[str, int]:
    held = server.registry.get_registered_model(line).aliases
    return {alias: int(number) for alias, number in held.items()}


async def test_the_suite_passes(mlflow: Mlflow, context: AdapterContext, line: str) -> None:
    store = make(mlflow, context, line)
    async with BINDINGS["object"]({"registry": store}, {"registry": ()}) as channel:
        # Pages come from the database alone, and want many versions.
        ids = [each.id for each in requirements_of("registry")]
        asked = [each for each in ids if each.startswith("REG-") and each != "REG-LIST-02"]
        report = await run_suite(channel, "registry", settings_of("registry", {}), only=asked)
    await store.close()
    assert {each.requirement.id: each.problem for each in report.results if each.verdict is Verdict.FAILED} == {}
    assert len(report.ids(Verdict.PASSED)) > len(report.results) / 2


async def test_mlflow_has_the_version_and_where_it_came_from(
    mlflow: Mlflow, context: AdapterContext, line: str, stub: Any, local: Binding
) -> None:
    metrics = await local.stub(MlflowMetricsStore(options(mlflow, line), context, clock=Waits().clock))
    await record(metrics, 1, point("a", 1, 1.0, 1700000000), run=f"r1-{line}")
    given = version(
        f"r1-{line}",
        model_name=line,
        checkpoint_uri="s3://bucket/final",
        artifacts=[pb.Artifact(name="card.md", uri="s3://bucket/card.md")],
    )
    stored = await register(stub, given)
    [found] = there(mlflow, line)
    experiment = mlflow.tracking.get_experiment_by_name(line).experiment_id
    [run] = mlflow.tracking.search_runs([experiment], "", 1)
    assert (found.source, found.run_id) == ("s3://bucket/final", run.info.run_id)
    assert found.tags == {
        "crucible.version_id": stored.version_id,
        "crucible.run_id": given.run_id,
        "crucible.model_name": line,
        "crucible.checkpoint_uri": given.checkpoint_uri,
        "crucible.manifest_sha256": given.manifest_sha256,
        "crucible.base_model": given.base_model,
        "crucible.config_sha256": given.config_sha256,
        "crucible.stage": "experiment",
        "crucible.artifact.card.md": "s3://bucket/card.md",
    }
    odd = pb.Artifact(name="50% of/../it", uri="s3://bucket/50")
    await stub.AddArtifact(pb.AddArtifactRequest(version_id=stored.version_id, artifact=odd))
    [found] = there(mlflow, line)
    assert "s3://bucket/50" in found.tags.values() and len(found.tags) == 10


async def test_a_path_of_the_machine_is_no_source(mlflow: Mlflow, line: str, stub: Any) -> None:
    stored = await register(stub, version(f"r-{line}", model_name=line))
    [found] = there(mlflow, line)
    assert found.source == f"crucible://versions/{stored.version_id}"
    assert found.tags["crucible.checkpoint_uri"] == stored.checkpoint_uri


async def test_aliases_follow_the_version_that_was_promoted_last(mlflow: Mlflow, line: str, stub: Any) -> None:
    first, second = [await register(stub, version(f"{name}-{line}", model_name=line)) for name in "ab"]
    assert aliases(mlflow, line) == {}
    await promote(stub, first, STAGING)
    await promote(stub, first, PRODUCTION)
    await promote(stub, second, STAGING)
    assert aliases(mlflow, line) == {"production": 1, "staging": 2}
    await promote(stub, second, PRODUCTION)
    assert aliases(mlflow, line) == {"production": 2}
    # Nothing but a promotion takes an alias.
    await register(stub, version(f"a-{line}", model_name=line))
    assert aliases(mlflow, line) == {"production": 2}
    await promote(stub, second, ARCHIVED)
    assert aliases(mlflow, line) == {}
    assert [each.tags["crucible.stage"] for each in there(mlflow, line)] == ["production", "archived"]
    third = await register(stub, version(f"c-{line}", model_name=line, stage=STAGING))
    assert third.stage == STAGING and aliases(mlflow, line) == {"staging": 3}


async def test_repeats_and_starts_anew_make_nothing_twice(
    mlflow: Mlflow, context: AdapterContext, line: str, local: Binding
) -> None:
    given = version(f"r-{line}", model_name=line)
    for _ in range(2):
        stub = await local.stub(make(mlflow, context, line))
        await asyncio.gather(*(register(stub, given) for _ in range(3)))
        await local.stop()
    assert len(there(mlflow, line)) == 1


@pytest.mark.parametrize(
    "path",
    ["/registered-models/create", "/model-versions/create", "/registered-models/alias", "/model-versions/set-tag"],
)
async def test_what_failed_on_the_way_is_made_up_for(mlflow: Mlflow, line: str, stub: Any, path: str) -> None:
    given = version(f"r-{line}", model_name=line, stage=PRODUCTION)
    mlflow.before = lambda request: AWAY if request.path == path else None
    with refused(UnavailableError, "STORE_UNAVAILABLE"):
        await register(stub, given)
    mlflow.forget()
    stored = await register(stub, given)
    [found] = there(mlflow, line)
    assert found.tags["crucible.stage"] == "production"
    assert aliases(mlflow, line) == {"production": 1}
    assert await get(stub, run_id=given.run_id) == stored


async def test_a_version_that_somebody_deleted_is_made_again(mlflow: Mlflow, line: str, stub: Any) -> None:
    stored = await register(stub, version(f"r-{line}", model_name=line))
    mlflow.registry.delete_registered_model(line)
    await promote(stub, stored, PRODUCTION)
    assert [each.tags["crucible.stage"] for each in there(mlflow, line)] == ["production"]
    assert aliases(mlflow, line) == {"production": 1}


async def test_any_name_of_a_line_is_kept_apart(mlflow: Mlflow, line: str, stub: Any) -> None:
    names = [line, f'"{line}\\%`', f"{line}/x", f"{line}:x", f"{line}_x", f"it's {line} \u00e4", f"..{line}"]
    for number, name in enumerate(names):
        await register(stub, version(f"{number}-{line}", model_name=name))
    assert len({model_name(name) for name in names}) == len(names)
    for name in names:
        [found] = there(mlflow, name)
        assert found.tags["crucible.model_name"] == name
