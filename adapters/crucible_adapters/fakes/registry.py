"""The fake of the registry port: versions and their lineage in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import Field

from crucible.port.registry.v1 import registry_pb2 as pb
from crucible.port.registry.v1 import registry_pb2_grpc
from crucible_adapters.fakes.fixed import fixed_time
from crucible_adapters.registry.lineage import Edge, Node, resolve, to_message
from crucible_adapters.registry.versions import registration_hash, version_id_of
from crucible_kit import paging
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, field_error

_MAX_DEPTH = 64


class FakeRegistryOptions(AdapterOptions):
    """What every fake takes."""

    seed: int = Field(default=0, ge=0, description="Changes nothing: a registry invents nothing.")


class _Registered(NamedTuple):
    version: pb.ModelVersion
    registration: str


class FakeModelRegistry(registry_pb2_grpc.ModelRegistryServiceServicer):
    """Model versions in a dictionary, in the order of their registration."""

    description = AdapterDescription(name="fake-registry", port="registry", options=FakeRegistryOptions)

    def __init__(self, options: FakeRegistryOptions, context: AdapterContext) -> None:
        self._versions: dict[str, _Registered] = {}
        self._edges: set[Edge] = set()

    async def close(self) -> None:
        """Forgets the versions."""
        self._versions.clear()
        self._edges.clear()

    async def RegisterVersion(self, request: pb.RegisterVersionRequest, context: Any) -> pb.RegisterVersionResponse:
        version = pb.ModelVersion()
        version.CopyFrom(request.version)
        for field in ("version_id", "create_time"):
            if version.version_id if field == "version_id" else version.HasField("create_time"):
                raise field_error(f"version.{field}", "is the registry's to set: leave it out")
        names = [artifact.name for artifact in version.artifacts]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise field_error(f"version.artifacts[{number}].name", f"{name!r} is there twice")
        version.stage = version.stage or pb.VERSION_STAGE_EXPERIMENT
        registration = registration_hash(version, list(request.lineage))
        version.version_id = version_id_of(version.run_id)
        present = self._versions.get(version.version_id)
        if present is None:
            edges = self._with(resolve(edge, version.version_id) for edge in request.lineage)
            version.create_time.CopyFrom(fixed_time())
            version.artifacts.sort(key=lambda artifact: artifact.name)
            self._edges = edges
            present = self._versions[version.version_id] = _Registered(version, registration)
        elif present.registration != registration:
            raise AlreadyExistsError(
                f"run {version.run_id!r} has registered version {version.version_id} with other content: "
                "a run has one version; register from another run",
                reason="VERSION_EXISTS",
                metadata={"run_id": version.run_id, "version_id": version.version_id},
            )
        return pb.RegisterVersionResponse(version=present.version)

    async def GetVersion(self, request: pb.GetVersionRequest, context: Any) -> pb.GetVersionResponse:
        match request.WhichOneof("key"):
            case "version_id":
                return pb.GetVersionResponse(version=self._find(request.version_id))
            case "run_id":
                name = ("run_id", request.run_id)
                return pb.GetVersionResponse(version=self._find(version_id_of(request.run_id), name))
            case _:
                raise field_error("key", "is missing: set version_id or run_id")

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Any) -> pb.ListVersionsResponse:
        size = paging.page_size(request.page_size)
        filters = {name: getattr(request, name) for name in ("model_name", "stage", "config_sha256")}
        scope = "\0".join(("ListVersions", *map(str, filters.values())))
        position = paging.decode(request.page_token, scope)
        found = [
            (number, each.version)
            for number, each in reversed(list(enumerate(self._versions.values())))
            if (not position or number < position[0])
            and all(getattr(each.version, name) == value for name, value in filters.items() if value)
        ]
        return pb.ListVersionsResponse(
            versions=[version for _, version in found[:size]],
            next_page_token=paging.encode([found[size - 1][0]], scope) if len(found) > size else "",
        )

    async def PromoteVersion(self, request: pb.PromoteVersionRequest, context: Any) -> pb.PromoteVersionResponse:
        version = self._find(request.version_id)
        if version.stage == pb.VERSION_STAGE_ARCHIVED and request.stage != version.stage:
            raise FailedPreconditionError(
                f"version {version.version_id} is archived, and from there nothing moves: register a new version",
                reason="VERSION_ARCHIVED",
                metadata={"version_id": version.version_id},
            )
        version.stage = request.stage
        return pb.PromoteVersionResponse(version=version)

    async def AddArtifact(self, request: pb.AddArtifactRequest, context: Any) -> pb.AddArtifactResponse:
        version, artifact = self._find(request.version_id), request.artifact
        present = next((each for each in version.artifacts if each.name == artifact.name), None)
        if present is None:
            version.artifacts.append(artifact)
            version.artifacts.sort(key=lambda each: each.name)
        elif present != artifact:
            raise AlreadyExistsError(
                f"version {version.version_id} has an artifact {artifact.name!r} with other content, {present.uri}: "
                "give this one another name",
                reason="ARTIFACT_EXISTS",
                metadata={"version_id": version.version_id, "name": artifact.name},
            )
        return pb.AddArtifactResponse(version=version)

    async def GetLineage(self, request: pb.GetLineageRequest, context: Any) -> pb.GetLineageResponse:
        start = Node(request.node.kind, request.node.id)
        ancestors = request.direction != pb.GetLineageRequest.DIRECTION_DESCENDANTS
        reached = _walk(self._edges, start, ancestors=ancestors, max_depth=request.max_depth or _MAX_DEPTH)
        return pb.GetLineageResponse(edges=[to_message(edge) for edge in reached])

    def _find(self, version_id: str, key: tuple[str, str] | None = None) -> pb.ModelVersion:
        registered = self._versions.get(version_id)
        if registered is None:
            name, value = key or ("version_id", version_id)
            raise NotFoundError(
                f"no model version has the {name} {value!r}: ListVersions lists those there are",
                reason="VERSION_NOT_FOUND",
                metadata={name: value},
            )
        return registered.version

    def _with(self, new: Iterator[Edge]) -> set[Edge]:
        """The edges and new ones. Raises INVALID_ARGUMENT LINEAGE_CYCLE, naming the edge that would close a cycle."""
        edges = set(self._edges)
        for number, edge in enumerate(new):
            came_from = {each.earlier for each in _walk(edges, edge.earlier, ancestors=True)}
            if edge.earlier == edge.later or edge.later in came_from:
                raise field_error(
                    f"lineage[{number}]",
                    f"would close a cycle: {edge.earlier.id!r} itself came from {edge.later.id!r}",
                    reason="LINEAGE_CYCLE",
                )
            edges.add(edge)
        return edges


def _walk(edges: set[Edge], start: Node, *, ancestors: bool, max_depth: int | None = None) -> list[Edge]:
    """The edges reached from a node, nearest first, each once."""
    seen, frontier, found = {start}, [start], list[Edge]()
    depth = 0
    while frontier and (max_depth is None or depth < max_depth):
        depth += 1
        reached = []
        for node in frontier:
            for edge in sorted(each for each in edges if (each.later if ancestors else each.earlier) == node):
                found.append(edge)
                other = edge.earlier if ancestors else edge.later
                if other not in seen:
                    seen.add(other)
                    reached.append(other)
        frontier = reached
    return found
