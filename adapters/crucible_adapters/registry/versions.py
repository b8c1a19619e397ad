"""Model versions between rows and messages."""

from __future__ import annotations

import hashlib
import math
import time
from typing import Any

from google.protobuf.json_format import MessageToDict
from sqlalchemy import Connection, Row, insert, select, update

from crucible.port.registry.v1 import registry_pb2
from crucible_adapters.registry.tables import artifacts, version_metrics, versions
from crucible_kit.chunks import canonical_json
from crucible_kit.errors import NotFoundError


def version_id_of(run_id: str) -> str:
    """The id of a run's version: a run has one."""
    return f"mv-{hashlib.sha256(run_id.encode()).hexdigest()[:20]}"


def registration_hash(version: registry_pb2.ModelVersion, lineage: list[registry_pb2.LineageEdge]) -> str:
    """Equal exactly when two registrations say the same, in whatever order they list it."""
    given = MessageToDict(version)
    given["artifacts"] = sorted(given.get("artifacts", []), key=lambda each: each["name"])
    said = {"version": given, "lineage": sorted((MessageToDict(edge) for edge in lineage), key=canonical_json)}
    return hashlib.sha256(canonical_json(said)).hexdigest()


def store(connection: Connection, version: registry_pb2.ModelVersion, registration: str) -> str:
    """Inserts a new version with its metrics and artifacts; returns its id."""
    version_id = version_id_of(version.run_id)
    connection.execute(
        insert(versions),
        {
            "version_id": version_id,
            "run_id": version.run_id,
            "model_name": version.model_name,
            "checkpoint_uri": version.checkpoint_uri,
            "manifest_sha256": version.manifest_sha256,
            "base_model": version.base_model,
            "config_sha256": version.config_sha256,
            "stage": version.stage,
            "create_time_ns": time.time_ns(),
            "registration_sha256": registration,
        },
    )
    metrics = [
        {"version_id": version_id, "name": name, "value": None if math.isnan(value) else value}
        for name, value in version.metrics.items()
    ]
    if metrics:
        connection.execute(insert(version_metrics), metrics)
    for artifact in version.artifacts:
        store_artifact(connection, version_id, artifact)
    return version_id


def store_artifact(connection: Connection, version_id: str, artifact: registry_pb2.Artifact) -> None:
    """Inserts an artifact."""
    connection.execute(
        insert(artifacts),
        {"version_id": version_id, "name": artifact.name, "uri": artifact.uri, "sha256": artifact.sha256},
    )


def set_stage(connection: Connection, version_id: str, stage: int) -> None:
    """Moves a version to a stage."""
    connection.execute(update(versions).filter_by(version_id=version_id).values(stage=stage))


def find(connection: Connection, **key: str) -> Row[Any]:
    """The row of a version by one of its columns. Raises NOT_FOUND VERSION_NOT_FOUND."""
    row = connection.execute(select(versions).filter_by(**key)).first()
    if row is None:
        name, value = next(iter(key.items()))
        raise NotFoundError(
            f"no model version has the {name} {value!r}: ListVersions lists those there are",
            reason="VERSION_NOT_FOUND",
            metadata=dict(key),
        )
    return row


def load(connection: Connection, row: Row[Any]) -> registry_pb2.ModelVersion:
    """The version of a row."""
    version = registry_pb2.ModelVersion(
        version_id=row.version_id,
        run_id=row.run_id,
        model_name=row.model_name,
        checkpoint_uri=row.checkpoint_uri,
        manifest_sha256=row.manifest_sha256,
        base_model=row.base_model,
        config_sha256=row.config_sha256,
        stage=row.stage,
    )
    version.create_time.FromNanoseconds(row.create_time_ns)
    for metric in connection.execute(select(version_metrics).filter_by(version_id=row.version_id)):
        version.metrics[metric.name] = math.nan if metric.value is None else metric.value
    query = select(artifacts).filter_by(version_id=row.version_id).order_by(artifacts.c.name)
    for artifact in connection.execute(query):
        version.artifacts.add(name=artifact.name, uri=artifact.uri, sha256=artifact.sha256)
    return version
