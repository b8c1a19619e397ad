"""Model registries: one version a run, stages that end in the archive, and a lineage without cycles."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from crucible.port.registry.v1 import registry_pb2 as pb
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import check, check_equal, check_refused, one_by_one
from crucible_kit.conformance.paging import Page, all_keys, check_pages
from crucible_kit.conformance.requirement import Samples, Stage, Suite
from crucible_kit.conformance.settings import SuiteSettings


class RegistrySettings(SuiteSettings):
    """Settings of the suite of model registries."""

    run_prefix: str = Field(
        default="", max_length=14, description="Ids of the runs whose versions the suite registers begin with it."
    )


SUITE = Suite(port="registry", settings=RegistrySettings)
Registry = Context[RegistrySettings]
MODEL, DATASET, RUN = pb.NODE_KIND_MODEL_VERSION, pb.NODE_KIND_DATASET, pb.NODE_KIND_RUN
DERIVED, TRAINED = pb.EDGE_KIND_FINE_TUNED_FROM, pb.EDGE_KIND_TRAINED_ON
_DESCENDANTS = pb.GetLineageRequest.DIRECTION_DESCENDANTS


def new_run(context: Registry) -> str:
    """The id of a run that has no version."""
    return f"{context.settings.run_prefix}{context.name()}"


def version(run: str, **fields: Any) -> pb.ModelVersion:
    """A version of a run."""
    defaults: dict[str, Any] = {
        "model_name": "conformance",
        "checkpoint_uri": f"file:///blobs/runs/{run}/final",
        "manifest_sha256": hashlib.sha256(run.encode()).hexdigest(),
        "base_model": "owner/base",
    }
    return pb.ModelVersion(run_id=run, **(defaults | fields))


def edge(kind: Any, later: tuple[Any, str], earlier: tuple[Any, str]) -> pb.LineageEdge:
    """`later` came from `earlier`."""
    nodes = [pb.LineageNode(kind=each[0], id=each[1]) for each in (later, earlier)]
    return pb.LineageEdge(kind=kind, from_node=nodes[0], to_node=nodes[1])


async def register(context: Registry, given: pb.ModelVersion, *lineage: pb.LineageEdge) -> pb.ModelVersion:
    """Stores a version."""
    request = pb.RegisterVersionRequest(version=given, lineage=lineage)
    return (await context.stub.RegisterVersion(request)).version


async def get(context: Registry, **key: str) -> pb.ModelVersion:
    """One version."""
    return (await context.stub.GetVersion(pb.GetVersionRequest(**key))).version


async def promote(context: Registry, version_id: str, stage: Any) -> pb.ModelVersion:
    """Moves a version."""
    request = pb.PromoteVersionRequest(version_id=version_id, stage=stage)
    return (await context.stub.PromoteVersion(request)).version


async def add(context: Registry, version_id: str, **artifact: str) -> pb.ModelVersion:
    """Adds a file."""
    request = pb.AddArtifactRequest(version_id=version_id, artifact=pb.Artifact(**artifact))
    return (await context.stub.AddArtifact(request)).version


async def lineage(context: Registry, node: tuple[Any, str], **fields: Any) -> list[tuple[str, str]]:
    """(later, earlier) of each edge."""
    request = pb.GetLineageRequest(node=pb.LineageNode(kind=node[0], id=node[1]), **fields)
    return [(each.from_node.id, each.to_node.id) for each in (await context.stub.GetLineage(request)).edges]


def pages(context: Registry, **filters: Any) -> Any:
    """What asks for a page of run ids."""

    async def page(size: int, token: str) -> Page:
        response = await context.stub.ListVersions(pb.ListVersionsRequest(page_size=size, page_token=token, **filters))
        return Page([each.run_id for each in response.versions], response.next_page_token)

    return page


def content(given: pb.ModelVersion) -> bytes:
    """A version as bytes: a NaN in it is not equal to itself."""
    return given.SerializeToString(deterministic=True)


@SUITE.samples
async def _samples(context: Registry) -> Samples:
    stored = await register(context, version(new_run(context)))
    fresh = version(new_run(context), metrics={"x": 1.0}, artifacts=[pb.Artifact(name="a", uri="file:///a")])
    return {
        "RegisterVersion": pb.RegisterVersionRequest(
            version=fresh, lineage=[edge(TRAINED, (MODEL, "self"), (DATASET, "d"))]
        ),
        "GetVersion": pb.GetVersionRequest(version_id=stored.version_id),
        "ListVersions": pb.ListVersionsRequest(model_name="conformance"),
        "PromoteVersion": pb.PromoteVersionRequest(version_id=stored.version_id, stage=pb.VERSION_STAGE_STAGING),
        "AddArtifact": pb.AddArtifactRequest(
            version_id=stored.version_id, artifact=pb.Artifact(name="b", uri="file:///b")
        ),
        "GetLineage": pb.GetLineageRequest(node=pb.LineageNode(kind=MODEL, id=stored.version_id)),
    }


@SUITE.pings
async def _ping(context: Registry) -> None:
    await context.stub.ListVersions(pb.ListVersionsRequest(page_size=1))


@SUITE.requirement(
    "REG-VERSION-01",
    "A version MUST come back as it was registered, by its id and by its run: numbers as they are, artifacts by "
    "name, its "
    "stage experiment where none was given.",
    quote="Unspecified at registration: experiment.",
)
async def _comes_back(context: Registry) -> None:
    given = version(
        new_run(context),
        config_sha256="c" * 64,
        metrics={"eval/mean_nll": 1.25, "nan": math.nan, "inf": -math.inf},
        artifacts=[pb.Artifact(name="b", uri="file:///b", sha256="b" * 64), pb.Artifact(name="a", uri="file:///a")],
    )
    stored = await register(context, given)
    check(bool(stored.version_id), "a version id", "an empty one")
    check_equal(stored.stage, pb.VERSION_STAGE_EXPERIMENT, "the stage where none was given")
    check(stored.create_time.seconds > 0, "a create_time", stored.create_time)
    check_equal([each.name for each in stored.artifacts], ["a", "b"], "the artifacts' names")
    for name in ("run_id", "model_name", "checkpoint_uri", "manifest_sha256", "base_model", "config_sha256"):
        check_equal(getattr(stored, name), getattr(given, name), name)
    numbers = {name: repr(value) for name, value in sorted(stored.metrics.items())}
    check_equal(numbers, {name: repr(value) for name, value in sorted(given.metrics.items())}, "the metrics")
    for key in ({"run_id": given.run_id}, {"version_id": stored.version_id}):
        check_equal(content(await get(context, **key)), content(stored), f"the version by {next(iter(key))}")


@SUITE.requirement(
    "REG-VERSION-02",
    "A run MUST have one version: the same content again gets it, other content is ALREADY_EXISTS VERSION_EXISTS.",
    quote="a run has one version; the same content again gets it, other content is ALREADY_EXISTS VERSION_EXISTS.",
)
async def _one_for_a_run(context: Registry) -> None:
    run = new_run(context)
    files = [pb.Artifact(name="a", uri="file:///a"), pb.Artifact(name="b", uri="file:///b")]
    edges = [
        edge(pb.EDGE_KIND_PRODUCED_BY, (MODEL, "self"), (RUN, run)),
        edge(TRAINED, (MODEL, "self"), (DATASET, f"d-{run}")),
    ]
    stored = await register(context, version(run, metrics={"x": 0.5}, artifacts=files), *edges)
    same = version(run, metrics={"x": 0.5}, artifacts=files[::-1])
    again = await register(context, same, *edges[::-1])
    check_equal(again.version_id, stored.version_id, "the id of the same content in another order")
    await promote(context, stored.version_id, pb.VERSION_STAGE_STAGING)
    after = await register(context, same, *edges)
    got = (after.version_id, after.stage)
    check_equal(got, (stored.version_id, pb.VERSION_STAGE_STAGING), "(id, stage) of a repeat after a promotion")
    others: dict[str, tuple[pb.ModelVersion, Sequence[pb.LineageEdge]]] = {
        "another metric": (version(run, metrics={"x": 1.0}, artifacts=files), edges),
        "fewer edges": (version(run, metrics={"x": 0.5}, artifacts=files), edges[:1]),
        "another checkpoint": (version(run, metrics={"x": 0.5}, artifacts=files, checkpoint_uri="file:///x"), edges),
    }
    for what, (other, given) in others.items():
        call = register(context, other, *given)
        await check_refused(call, "ALREADY_EXISTS", "VERSION_EXISTS", what=f"the same run with {what}")
    twin = version(new_run(context))
    twins = await asyncio.gather(*(register(context, twin) for _ in range(8)))
    check_equal(len({each.version_id for each in twins}), 1, "the ids of one version registered 8 times at a time")


@SUITE.requirement(
    "REG-VERSION-03",
    "What the registry sets itself MUST not be given: version_id and create_time are INVALID_ARGUMENT FIELD_INVALID.",
    quote="version_id and create_time are the registry's to set and must be absent.",
)
async def _not_to_be_given(context: Registry) -> None:
    run = new_run(context)
    cases = {
        "a version_id": version(run, version_id="v1"),
        "a create_time": version(run, create_time={"seconds": 1}),
    }
    for what, given in cases.items():
        call = register(context, given)
        await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what=f"a registration with {what}")
    await check_refused(get(context, run_id=run), "NOT_FOUND", "VERSION_NOT_FOUND", what="a refused version")


@SUITE.requirement(
    "REG-VERSION-04",
    "What is not there MUST be NOT_FOUND VERSION_NOT_FOUND, and a request by nothing INVALID_ARGUMENT FIELD_INVALID.",
    quote="NOT_FOUND VERSION_NOT_FOUND; INVALID_ARGUMENT FIELD_INVALID.",
)
async def _not_there(context: Registry) -> None:
    name = new_run(context)
    calls = {
        "GetVersion by id": get(context, version_id=name),
        "GetVersion by run": get(context, run_id=name),
        "PromoteVersion": promote(context, name, pb.VERSION_STAGE_STAGING),
        "AddArtifact": add(context, name, name="a", uri="file:///a"),
    }
    for what, call in one_by_one(calls):
        await check_refused(call, "NOT_FOUND", "VERSION_NOT_FOUND", what=f"{what} of an unknown version")
    await check_refused(get(context), "INVALID_ARGUMENT", "FIELD_INVALID", what="GetVersion by nothing")
    check_equal(await lineage(context, (MODEL, name)), [], "the lineage of an unknown node")


@SUITE.requirement(
    "REG-STAGE-01",
    "Versions MUST move between stages, repeats included, until they are archived: then FAILED_PRECONDITION "
    "VERSION_ARCHIVED.",
    quote="From archived nothing moves: FAILED_PRECONDITION VERSION_ARCHIVED.",
)
async def _stages(context: Registry) -> None:
    stored = await register(context, version(new_run(context)))
    for stage in (pb.VERSION_STAGE_STAGING, pb.VERSION_STAGE_PRODUCTION, pb.VERSION_STAGE_STAGING):
        for _ in range(2):
            check_equal((await promote(context, stored.version_id, stage)).stage, stage, "the stage after a promotion")
    for _ in range(2):
        moved = await promote(context, stored.version_id, pb.VERSION_STAGE_ARCHIVED)
        check_equal(moved.stage, pb.VERSION_STAGE_ARCHIVED, "the stage after archiving")
    call = promote(context, stored.version_id, pb.VERSION_STAGE_PRODUCTION)
    await check_refused(call, "FAILED_PRECONDITION", "VERSION_ARCHIVED", what="a move out of the archive")
    now = (await get(context, version_id=stored.version_id)).stage
    check_equal(now, pb.VERSION_STAGE_ARCHIVED, "the stage after a refused move")


@SUITE.requirement(
    "REG-ARTIFACT-01",
    "Artifacts MUST be added once by name: the same again is OK, another one of that name ALREADY_EXISTS "
    "ARTIFACT_EXISTS.",
    quote="Idempotent by name and content; other content is ALREADY_EXISTS ARTIFACT_EXISTS.",
)
async def _artifacts(context: Registry) -> None:
    stored = await register(context, version(new_run(context)))
    await add(context, stored.version_id, name="report", uri="file:///r", sha256="e" * 64)
    for _ in range(2):
        now = await add(context, stored.version_id, name="card", uri="file:///c")
        check_equal([each.name for each in now.artifacts], ["card", "report"], "the artifacts, by name")
    for uri, sha256 in (("file:///other", "e" * 64), ("file:///r", "f" * 64)):
        call = add(context, stored.version_id, name="report", uri=uri, sha256=sha256)
        await check_refused(call, "ALREADY_EXISTS", "ARTIFACT_EXISTS", what="another artifact of a used name")
    kept = await get(context, version_id=stored.version_id)
    check_equal([each.uri for each in kept.artifacts], ["file:///c", "file:///r"], "the artifacts after refusals")


@SUITE.requirement(
    "REG-LIST-01",
    "ListVersions MUST list what fits all filters, newest first.",
    quote="ListVersions lists versions, newest first.",
)
async def _lists(context: Registry) -> None:
    line = new_run(context)
    runs = [new_run(context) for _ in range(6)]
    for number, run in enumerate(runs):
        stage = pb.VERSION_STAGE_PRODUCTION if number % 3 == 0 else pb.VERSION_STAGE_UNSPECIFIED
        config = ("c" if number % 2 else "d") * 64
        await register(context, version(run, model_name=line, stage=stage, config_sha256=config))
    newest_first = runs[::-1]
    check_equal(await all_keys(pages(context, model_name=line), 0), newest_first, "the runs of a model line")
    production = await all_keys(pages(context, model_name=line, stage=pb.VERSION_STAGE_PRODUCTION), 0)
    check_equal(production, [runs[3], runs[0]], "those in production")
    configured = await all_keys(pages(context, model_name=line, config_sha256="c" * 64), 0)
    check_equal(configured, [runs[5], runs[3], runs[1]], "those of a configuration")
    both = await all_keys(pages(context, model_name=line, config_sha256="c" * 64, stage=pb.VERSION_STAGE_PRODUCTION), 0)
    check_equal(both, [runs[3]], "those of a configuration in production")
    everything = (await context.stub.ListVersions(pb.ListVersionsRequest(page_size=6))).versions
    check_equal([each.run_id for each in everything], newest_first, "the newest of all")


@SUITE.requirement(
    "REG-LIST-02",
    "Pages of any size MUST give every version once, newest first.",
    quote="At most so many, up to 500. 0: 50.",
)
async def _pages(context: Registry) -> None:
    line = new_run(context)
    runs = [new_run(context) for _ in range(53)]
    for run in runs:
        await register(context, version(run, model_name=line))
    await check_pages(pages(context, model_name=line), runs[::-1], "the versions of a model line")


@SUITE.requirement(
    "REG-LIST-03",
    "A page token MUST be taken only for the list it comes from: otherwise INVALID_ARGUMENT PAGE_TOKEN_INVALID.",
    quote="Where to go on, from the response before.",
)
async def _tokens(context: Registry) -> None:
    line = new_run(context)
    for _ in range(2):
        await register(context, version(new_run(context), model_name=line))
    page = await pages(context, model_name=line)(1, "")
    check(bool(page.next_token), "a token behind the first of two versions", "none")
    for what, token, filters in (
        ("another list", page.next_token, {"model_name": f"{line}-other"}),
        ("no filter", page.next_token, {}),
        ("nobody", "no-token-of-yours", {"model_name": line}),
    ):
        call = pages(context, **filters)(1, token)
        await check_refused(call, "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", what=f"the token of {what}")


@SUITE.requirement(
    "REG-LINEAGE-01",
    "GetLineage MUST walk both ways, nearest edges first, each once, as far as max_depth; ids count within their kind.",
    quote="The edges, nearest first.",
)
async def _walks(context: Registry) -> None:
    base, d1, d2 = (f"{name}-{new_run(context)}" for name in ("base", "d1", "d2"))
    first = await register(
        context,
        version(new_run(context)),
        edge(DERIVED, (MODEL, "self"), (MODEL, base)),
        edge(TRAINED, (MODEL, "self"), (DATASET, d1)),
    )
    second = await register(
        context,
        version(new_run(context)),
        edge(pb.EDGE_KIND_DPO_TRAINED_FROM, (MODEL, "self"), (MODEL, first.version_id)),
        edge(TRAINED, (MODEL, "self"), (DATASET, d2)),
        edge(pb.EDGE_KIND_CURATED_FROM, (DATASET, d2), (DATASET, d1)),
    )
    one, two = first.version_id, second.version_id
    near, far = {(two, one), (two, d2)}, {(one, base), (one, d1), (d2, d1)}
    found = await lineage(context, (MODEL, two))
    check_equal((set(found[:2]), set(found[2:]), len(found)), (near, far, 5), "(near, far, number of) ancestors")
    check_equal(set(await lineage(context, (MODEL, two), max_depth=1)), near, "the ancestors one edge away")
    down = await lineage(context, (MODEL, base), direction=_DESCENDANTS)
    check_equal(down, [(one, base), (two, one)], "the descendants of the base model")
    check_equal(await lineage(context, (RUN, two)), [], "the ancestors of a run with the id of a version")


@SUITE.requirement(
    "REG-LINEAGE-02",
    "An edge that would close a cycle MUST be INVALID_ARGUMENT LINEAGE_CYCLE, and nothing of its registration be "
    "stored.",
    quote="INVALID_ARGUMENT LINEAGE_CYCLE when an edge would close a cycle.",
)
async def _cycles(context: Registry) -> None:
    a, b, c = (f"{name}-{new_run(context)}" for name in "abc")
    chain = [edge(DERIVED, (MODEL, b), (MODEL, a)), edge(DERIVED, (MODEL, c), (MODEL, b))]
    await register(context, version(new_run(context)), *chain)
    cycles = {
        "through stored edges": [edge(DERIVED, (MODEL, a), (MODEL, c))],
        "from a node to itself": [edge(DERIVED, (MODEL, a), (MODEL, a))],
        "through the new version": [
            edge(DERIVED, (MODEL, "self"), (MODEL, c)),
            edge(pb.EDGE_KIND_DISTILLED_FROM, (MODEL, a), (MODEL, "self")),
        ],
        "from the new version to itself": [edge(DERIVED, (MODEL, "self"), (MODEL, "self"))],
    }
    for what, edges in cycles.items():
        run = new_run(context)
        call = register(context, version(run), *edges)
        await check_refused(call, "INVALID_ARGUMENT", "LINEAGE_CYCLE", what=f"a cycle {what}")
        await check_refused(get(context, run_id=run), "NOT_FOUND", "VERSION_NOT_FOUND", what="the refused version")
    check_equal(await lineage(context, (MODEL, c)), [(c, b), (b, a)], "the lineage after refused registrations")


@SUITE.requirement(
    "REG-RESTART-01",
    "What the registry has answered MUST be there after the adapter was killed: versions, stages, artifacts and "
    "lineage.",
    stage=Stage.RESTART,
)
async def _survives(context: Registry) -> None:
    run, line = new_run(context), new_run(context)
    given = version(run, model_name=line, metrics={"x": math.nan})
    stored = await register(context, given, edge(TRAINED, (MODEL, "self"), (DATASET, f"d-{run}")))
    await promote(context, stored.version_id, pb.VERSION_STAGE_PRODUCTION)
    kept = await add(context, stored.version_id, name="a", uri="file:///a")
    await context.restart()
    check_equal(content(await get(context, run_id=run)), content(kept), "the version after a restart")
    check_equal(await lineage(context, (MODEL, stored.version_id)), [(stored.version_id, f"d-{run}")], "its lineage")
    check_equal(await all_keys(pages(context, model_name=line), 0), [run], "the list of its model line")
