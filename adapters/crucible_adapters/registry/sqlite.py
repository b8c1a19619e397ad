"""ModelRegistry in a SQLite file."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import select

from crucible.port.registry.v1 import registry_pb2, registry_pb2_grpc
from crucible_adapters.registry import lineage
from crucible_adapters.registry.tables import SCHEMA_VERSION, artifacts, metadata, versions
from crucible_adapters.registry.versions import find, load, registration_hash, set_stage, store, store_artifact
from crucible_adapters.sqlite_file import SqliteFile
from crucible_adapters.threads import Threads
from crucible_kit import paging
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, field_error

_MAX_DEPTH = 64


class SqliteModelRegistry(registry_pb2_grpc.ModelRegistryServiceServicer):
    """Model versions in registry.db in the data folder."""

    description: ClassVar[AdapterDescription] = AdapterDescription(name="sqlite-registry", port="registry")

    def __init__(self, options: AdapterOptions, context: AdapterContext) -> None:
        self._file = SqliteFile(context.data_dir / "registry.db", metadata, version=SCHEMA_VERSION)
        self._threads = Threads("registry", 1)

    async def close(self) -> None:
        """Ends the thread and closes the file."""
        await self._threads.close()
        self._file.close()

    async def RegisterVersion(
        self, request: registry_pb2.RegisterVersionRequest, context: Any
    ) -> registry_pb2.RegisterVersionResponse:
        return registry_pb2.RegisterVersionResponse(version=await self._threads.run(self._register, request))

    def _register(self, request: registry_pb2.RegisterVersionRequest) -> registry_pb2.ModelVersion:
        version = registry_pb2.ModelVersion()
        version.CopyFrom(request.version)
        if version.version_id or version.HasField("create_time"):
            field = "version_id" if version.version_id else "create_time"
            raise field_error(f"version.{field}", "is the registry's to set: leave it out")
        names: set[str] = set()
        for number, artifact in enumerate(version.artifacts):
            if artifact.name in names:
                raise field_error(f"version.artifacts[{number}].name", f"{artifact.name!r} is there twice")
            names.add(artifact.name)
        version.stage = version.stage or registry_pb2.VERSION_STAGE_EXPERIMENT
        registration = registration_hash(version, list(request.lineage))
        with self._file.transaction() as connection:
            try:
                present = find(connection, run_id=version.run_id)
            except NotFoundError:
                version_id = store(connection, version, registration)
                lineage.add(connection, [lineage.resolve(edge, version_id) for edge in request.lineage])
                present = find(connection, run_id=version.run_id)
            if present.registration_sha256 != registration:
                raise AlreadyExistsError(
                    f"run {version.run_id!r} has registered version {present.version_id} with other content: "
                    "a run has one version; register from another run",
                    reason="VERSION_EXISTS",
                    metadata={"run_id": version.run_id, "version_id": present.version_id},
                )
            return load(connection, present)

    async def GetVersion(
        self, request: registry_pb2.GetVersionRequest, context: Any
    ) -> registry_pb2.GetVersionResponse:
        key = request.WhichOneof("key")
        if key is None:
            raise field_error("key", "is missing: set version_id or run_id")
        return registry_pb2.GetVersionResponse(version=await self._threads.run(self._get, {key: getattr(request, key)}))

    def _get(self, key: dict[str, str]) -> registry_pb2.ModelVersion:
        with self._file.transaction() as connection:
            return load(connection, find(connection, **key))

    async def ListVersions(
        self, request: registry_pb2.ListVersionsRequest, context: Any
    ) -> registry_pb2.ListVersionsResponse:
        return await self._threads.run(self._list, request)

    def _list(self, request: registry_pb2.ListVersionsRequest) -> registry_pb2.ListVersionsResponse:
        size = paging.page_size(request.page_size)
        scope = f"ListVersions\0{request.model_name}\0{request.stage}\0{request.config_sha256}"
        position = paging.decode(request.page_token, scope)
        query = select(versions).order_by(versions.c.number.desc()).limit(size + 1)
        for name in ("model_name", "stage", "config_sha256"):
            if getattr(request, name):
                query = query.where(versions.c[name] == getattr(request, name))
        if position:
            query = query.where(versions.c.number < position[0])
        with self._file.transaction() as connection:
            rows = connection.execute(query).all()
            response = registry_pb2.ListVersionsResponse(versions=[load(connection, row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = paging.encode([rows[size - 1].number], scope)
        return response

    async def PromoteVersion(
        self, request: registry_pb2.PromoteVersionRequest, context: Any
    ) -> registry_pb2.PromoteVersionResponse:
        return registry_pb2.PromoteVersionResponse(version=await self._threads.run(self._promote, request))

    def _promote(self, request: registry_pb2.PromoteVersionRequest) -> registry_pb2.ModelVersion:
        with self._file.transaction() as connection:
            row = find(connection, version_id=request.version_id)
            if row.stage == registry_pb2.VERSION_STAGE_ARCHIVED and request.stage != row.stage:
                raise FailedPreconditionError(
                    f"version {row.version_id} is archived, and from there nothing moves: register a new version",
                    reason="VERSION_ARCHIVED",
                    metadata={"version_id": row.version_id},
                )
            set_stage(connection, row.version_id, request.stage)
            return load(connection, find(connection, version_id=row.version_id))

    async def AddArtifact(
        self, request: registry_pb2.AddArtifactRequest, context: Any
    ) -> registry_pb2.AddArtifactResponse:
        return registry_pb2.AddArtifactResponse(version=await self._threads.run(self._add_artifact, request))

    def _add_artifact(self, request: registry_pb2.AddArtifactRequest) -> registry_pb2.ModelVersion:
        artifact = request.artifact
        with self._file.transaction() as connection:
            row = find(connection, version_id=request.version_id)
            query = select(artifacts).filter_by(version_id=row.version_id, name=artifact.name)
            present = connection.execute(query).first()
            if present is None:
                store_artifact(connection, row.version_id, artifact)
            elif (present.uri, present.sha256) != (artifact.uri, artifact.sha256):
                raise AlreadyExistsError(
                    f"version {row.version_id} has an artifact {artifact.name!r} with other content, {present.uri}: "
                    "give this one another name",
                    reason="ARTIFACT_EXISTS",
                    metadata={"version_id": row.version_id, "name": artifact.name},
                )
            return load(connection, row)

    async def GetLineage(
        self, request: registry_pb2.GetLineageRequest, context: Any
    ) -> registry_pb2.GetLineageResponse:
        return registry_pb2.GetLineageResponse(edges=await self._threads.run(self._lineage, request))

    def _lineage(self, request: registry_pb2.GetLineageRequest) -> list[registry_pb2.LineageEdge]:
        start = lineage.Node(request.node.kind, request.node.id)
        ancestors = request.direction != registry_pb2.GetLineageRequest.DIRECTION_DESCENDANTS
        with self._file.transaction() as connection:
            found = lineage.walk(connection, start, ancestors=ancestors, max_depth=request.max_depth or _MAX_DEPTH)
            return [lineage.to_message(edge) for edge in found]
