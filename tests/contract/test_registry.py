"""ModelRegistry: one version a run, stages that end in the archive, and a lineage without cycles."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from typing import Any

import pytest

from crucible.port.registry.v1 import registry_pb2 as pb
from crucible_adapters.fakes.registry import FakeModelRegistry, FakeRegistryOptions
from crucible_adapters.registry.sqlite import SqliteModelRegistry
from crucible_kit.adapter import AdapterContext, AdapterOptions
from crucible_kit.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from tests.contract.conftest import Binding
from tests.contract.refusals import refused

MODEL, DATASET, RUN = pb.NODE_KIND_MODEL_VERSION, pb.NODE_KIND_DATASET, pb.NODE_KIND_RUN


def sqlite_registry(context: AdapterContext) -> SqliteModelRegistry:
    return SqliteModelRegistry(AdapterOptions(), context)


def fake_registry(context: AdapterContext) -> FakeModelRegistry:
    return FakeModelRegistry(FakeRegistryOptions(), context)


@pytest.fixture(params=[sqlite_registry, fake_registry])
async def stub(request: pytest.FixtureRequest, binding: Binding, context: AdapterContext) -> Any:
    """Every adapter."""
    return await binding.stub(request.param(context))


def version(run: str, **fields: Any) -> pb.ModelVersion:
    defaults: dict[str, Any] = {
        "model_name": "sl-basic",
        "checkpoint_uri": f"file:///blobs/runs/{run}/final",
        "manifest_sha256": "a" * 64,
        "base_model": "builtin:tiny-qwen3",
        "config_sha256": "c" * 64,
    }
    return pb.ModelVersion(run_id=run, **(defaults | fields))


def edge(kind: Any, later: tuple[Any, str], earlier: tuple[Any, str]) -> pb.LineageEdge:
    nodes = [pb.LineageNode(kind=each[0], id=each[1]) for each in (later, earlier)]
    return pb.LineageEdge(kind=kind, from_node=nodes[0], to_node=nodes[1])


async def register(stub: Any, given: pb.ModelVersion, *lineage: pb.LineageEdge) -> pb.ModelVersion:
    return (await stub.RegisterVersion(pb.RegisterVersionRequest(version=given, lineage=lineage))).version


async def get(stub: Any, **key: str) -> pb.ModelVersion:
    return (await stub.GetVersion(pb.GetVersionRequest(**key))).version


async def lineage(stub: Any, node: tuple[Any, str], **fields: Any) -> list[tuple[str, str]]:
    request = pb.GetLineageRequest(node=pb.LineageNode(kind=node[0], id=node[1]), **fields)
    return [(each.from_node.id, each.to_node.id) for each in (await stub.GetLineage(request)).edges]


GIVEN = version(
    "r1",
    metrics={"eval/heldout/mean_nll": 1.25, "nan": math.nan, "inf": -math.inf},
    artifacts=[pb.Artifact(name="b", uri="file:///b", sha256="b" * 64), pb.Artifact(name="a", uri="file:///a")],
)


async def test_a_version_comes_back_as_registered(stub: Any) -> None:
    stored = await register(stub, GIVEN)
    assert stored.version_id
    assert stored.stage == pb.VERSION_STAGE_EXPERIMENT
    assert stored.create_time.seconds > 0
    assert [each.name for each in stored.artifacts] == ["a", "b"]
    assert stored.metrics["inf"] == -math.inf
    assert math.isnan(stored.metrics["nan"])
    for name in ("run_id", "model_name", "checkpoint_uri", "manifest_sha256", "base_model", "config_sha256"):
        assert getattr(stored, name) == getattr(GIVEN, name)
    await check_stored(stub, stored)


async def test_a_version_is_there_after_a_restart(binding: Binding, context: AdapterContext) -> None:
    stored = await register(await binding.stub(sqlite_registry(context)), GIVEN)
    await check_stored(await binding.stub(sqlite_registry(context)), stored)


async def check_stored(stub: Any, stored: pb.ModelVersion) -> None:
    for key in ({"run_id": stored.run_id}, {"version_id": stored.version_id}):
        # Bytes: a NaN is not equal to itself.
        found = await get(stub, **key)
        assert found.SerializeToString(deterministic=True) == stored.SerializeToString(deterministic=True)


async def test_a_run_has_one_version(stub: Any) -> None:
    artifacts = [pb.Artifact(name="a", uri="file:///a"), pb.Artifact(name="b", uri="file:///b")]
    edges = [
        edge(pb.EDGE_KIND_PRODUCED_BY, (MODEL, "self"), (RUN, "r1")),
        edge(pb.EDGE_KIND_TRAINED_ON, (MODEL, "self"), (DATASET, "d")),
    ]
    stored = await register(stub, version("r1", metrics={"x": math.nan}, artifacts=artifacts), *edges)
    same = version("r1", metrics={"x": math.nan}, artifacts=artifacts[::-1], stage=pb.VERSION_STAGE_EXPERIMENT)
    assert (await register(stub, same, *edges[::-1])).version_id == stored.version_id
    # What happened to the version since does not make the same registration another one.
    promotion = pb.PromoteVersionRequest(version_id=stored.version_id, stage=pb.VERSION_STAGE_STAGING)
    await stub.PromoteVersion(promotion)
    assert (await register(stub, same, *edges)).stage == pb.VERSION_STAGE_STAGING
    for other, given_edges in (
        (version("r1", metrics={"x": 1.0}, artifacts=artifacts), edges),
        (version("r1", metrics={"x": math.nan}, artifacts=artifacts), edges[:1]),
        (version("r1", metrics={"x": math.nan}, artifacts=artifacts, stage=pb.VERSION_STAGE_PRODUCTION), edges),
    ):
        with refused(AlreadyExistsError, "VERSION_EXISTS", says=stored.version_id):
            await register(stub, other, *given_edges)
    listed = (await stub.ListVersions(pb.ListVersionsRequest())).versions
    assert [each.version_id for each in listed] == [stored.version_id]


async def test_bad_registrations_are_refused_and_store_nothing(stub: Any) -> None:
    twice = [pb.Artifact(name="a", uri="file:///a"), pb.Artifact(name="a", uri="file:///b")]
    for given, field in (
        (version("r", version_id="mv-1"), "version.version_id"),
        (version("r", create_time={"seconds": 1}), "version.create_time"),
        (version("r", artifacts=twice), "version.artifacts[1].name"),
        (version("r", manifest_sha256="x"), "version.manifest_sha256"),
        (version("r", base_model=""), "version.base_model"),
        (version("r", artifacts=[pb.Artifact(name="a")]), "version.artifacts[0].uri"),
    ):
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            await register(stub, given)
    with refused(NotFoundError, "VERSION_NOT_FOUND", says="'r'"):
        await get(stub, run_id="r")


async def test_what_is_not_there_is_not_found(stub: Any) -> None:
    artifact = pb.AddArtifactRequest(version_id="mv-x", artifact=pb.Artifact(name="a", uri="file:///a"))
    for call in (
        stub.GetVersion(pb.GetVersionRequest(version_id="mv-x")),
        stub.GetVersion(pb.GetVersionRequest(run_id="mv-x")),
        stub.PromoteVersion(pb.PromoteVersionRequest(version_id="mv-x", stage=pb.VERSION_STAGE_STAGING)),
        stub.AddArtifact(artifact),
    ):
        with refused(NotFoundError, "VERSION_NOT_FOUND", says="'mv-x'"):
            await call
    with refused(InvalidArgumentError, "FIELD_INVALID", field="key"):
        await stub.GetVersion(pb.GetVersionRequest())
    assert await lineage(stub, (MODEL, "mv-x")) == []


async def test_lists_are_newest_first_filtered_and_paged(stub: Any) -> None:
    for number in range(7):
        stage = pb.VERSION_STAGE_PRODUCTION if number % 3 == 0 else pb.VERSION_STAGE_UNSPECIFIED
        await register(stub, version(f"r{number}", model_name=f"m{number % 2}", stage=stage))

    async def runs(size: int = 2, **filters: Any) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            request = pb.ListVersionsRequest(page_size=size, page_token=token, **filters)
            response = await stub.ListVersions(request)
            assert len(response.versions) <= size
            found.extend(each.run_id for each in response.versions)
            token = response.next_page_token
            if not token:
                return found

    for size in (1, 2, 7, 50):
        assert await runs(size) == [f"r{number}" for number in range(6, -1, -1)]
    assert await runs(model_name="m1") == ["r5", "r3", "r1"]
    assert await runs(stage=pb.VERSION_STAGE_PRODUCTION) == ["r6", "r3", "r0"]
    assert await runs(model_name="m1", stage=pb.VERSION_STAGE_PRODUCTION) == ["r3"]
    assert await runs(config_sha256="c" * 64, size=50) == await runs()
    assert await runs(config_sha256="d" * 64) == []
    token = (await stub.ListVersions(pb.ListVersionsRequest(page_size=1))).next_page_token
    with refused(InvalidArgumentError, "PAGE_TOKEN_INVALID", field="page_token"):
        await stub.ListVersions(pb.ListVersionsRequest(page_token=token, model_name="m1"))


async def test_stages_move_until_the_archive(stub: Any) -> None:
    stored = await register(stub, version("r"))

    async def promote(stage: Any) -> Any:
        request = pb.PromoteVersionRequest(version_id=stored.version_id, stage=stage)
        return (await stub.PromoteVersion(request)).version.stage

    for stage in (pb.VERSION_STAGE_STAGING, pb.VERSION_STAGE_PRODUCTION, pb.VERSION_STAGE_STAGING):
        assert await promote(stage) == stage
        assert await promote(stage) == stage
    with refused(InvalidArgumentError, "FIELD_INVALID", field="stage"):
        await promote(pb.VERSION_STAGE_UNSPECIFIED)
    for _ in range(2):
        assert await promote(pb.VERSION_STAGE_ARCHIVED) == pb.VERSION_STAGE_ARCHIVED
    with refused(FailedPreconditionError, "VERSION_ARCHIVED", says=stored.version_id):
        await promote(pb.VERSION_STAGE_PRODUCTION)
    assert (await get(stub, run_id="r")).stage == pb.VERSION_STAGE_ARCHIVED


async def test_artifacts_are_added_once(stub: Any) -> None:
    stored = await register(stub, version("r"))

    async def add(name: str, uri: str, sha256: str = "") -> list[str]:
        artifact = pb.Artifact(name=name, uri=uri, sha256=sha256)
        request = pb.AddArtifactRequest(version_id=stored.version_id, artifact=artifact)
        return [each.name for each in (await stub.AddArtifact(request)).version.artifacts]

    assert await add("report", "file:///r", "e" * 64) == ["report"]
    assert await add("card", "file:///c") == ["card", "report"]
    assert await add("report", "file:///r", "e" * 64) == ["card", "report"]
    for uri, sha256 in (("file:///other", "e" * 64), ("file:///r", "f" * 64)):
        with refused(AlreadyExistsError, "ARTIFACT_EXISTS", says="'report'"):
            await add("report", uri, sha256)


async def test_lineage_walks_both_ways_nearest_first(stub: Any) -> None:
    # base <- v1 <- v2, each trained on a dataset; d2 was curated from d1.
    first = await register(
        stub,
        version("r1"),
        edge(pb.EDGE_KIND_FINE_TUNED_FROM, (MODEL, "self"), (MODEL, "base")),
        edge(pb.EDGE_KIND_TRAINED_ON, (MODEL, "self"), (DATASET, "d1")),
    )
    second = await register(
        stub,
        version("r2"),
        edge(pb.EDGE_KIND_DPO_TRAINED_FROM, (MODEL, "self"), (MODEL, first.version_id)),
        edge(pb.EDGE_KIND_TRAINED_ON, (MODEL, "self"), (DATASET, "d2")),
        edge(pb.EDGE_KIND_CURATED_FROM, (DATASET, "d2"), (DATASET, "d1")),
    )
    one, two = first.version_id, second.version_id
    ancestors = await lineage(stub, (MODEL, two))
    assert set(ancestors[:2]) == {(two, one), (two, "d2")}
    assert set(ancestors[2:]) == {(one, "base"), (one, "d1"), ("d2", "d1")}
    assert len(ancestors) == 5
    assert await lineage(stub, (MODEL, two), max_depth=1) == ancestors[:2]
    down = pb.GetLineageRequest.DIRECTION_DESCENDANTS
    assert await lineage(stub, (MODEL, "base"), direction=down) == [(one, "base"), (two, one)]
    reached = await lineage(stub, (DATASET, "d1"), direction=down)
    assert set(reached[:2]) == {(one, "d1"), ("d2", "d1")}
    assert set(reached[2:]) == {(two, one), (two, "d2")}
    # Ids count within their kind.
    assert await lineage(stub, (RUN, two)) == []


async def test_a_cycle_is_refused_and_stores_nothing(stub: Any) -> None:
    derived = pb.EDGE_KIND_FINE_TUNED_FROM
    await register(
        stub, version("r0"), edge(derived, (MODEL, "b"), (MODEL, "a")), edge(derived, (MODEL, "c"), (MODEL, "b"))
    )
    cycles = {
        "r1": [edge(derived, (MODEL, "a"), (MODEL, "c"))],
        "r2": [edge(derived, (MODEL, "a"), (MODEL, "a"))],
        "r3": [
            edge(derived, (MODEL, "self"), (MODEL, "c")),
            edge(pb.EDGE_KIND_DISTILLED_FROM, (MODEL, "a"), (MODEL, "self")),
        ],
        "r4": [edge(derived, (MODEL, "self"), (MODEL, "self"))],
    }
    for run, edges in cycles.items():
        with refused(InvalidArgumentError, "LINEAGE_CYCLE", field=f"lineage[{len(edges) - 1}]"):
            await register(stub, version(run), *edges)
        with refused(NotFoundError, "VERSION_NOT_FOUND"):
            await get(stub, run_id=run)
    assert await lineage(stub, (MODEL, "c")) == [("c", "b"), ("b", "a")]
    await register(stub, version("r5"), edge(derived, (MODEL, "c"), (MODEL, "a")))


async def test_registrations_beside_each_other_all_count(stub: Any) -> None:
    stored = await asyncio.gather(*(register(stub, version(f"r{number % 10}")) for number in range(30)))
    assert len({each.version_id for each in stored}) == 10
    assert len((await stub.ListVersions(pb.ListVersionsRequest())).versions) == 10


async def test_a_newer_schema_is_refused(context: AdapterContext) -> None:
    await SqliteModelRegistry(AdapterOptions(), context).close()
    raw = sqlite3.connect(context.data_dir / "registry.db")
    raw.execute("PRAGMA user_version = 2")
    raw.close()
    with refused(FailedPreconditionError, "SCHEMA_NEWER", says="registry.db"):
        SqliteModelRegistry(AdapterOptions(), context)
