"""ModelRegistry in a SQLite file, and every version in the model registry of an MLflow server.

MLflow has no lineage, no content that a version is held to, and no run that has one version: the port is answered from
the database, which is changed first. Then MLflow is brought to the same, by steps that can be repeated: a call that
fails there is made again by its caller, and finds in the database what it has done.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import threading
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from crucible.port.registry.v1 import registry_pb2
from crucible_adapters.mlflow_server import (
    RUN_TAG,
    SECRETS,
    SYSTEM_CLOCK,
    MlflowExperimentOptions,
    MlflowServer,
    Stores,
    find_run,
)
from crucible_adapters.registry.sqlite import SqliteModelRegistry
from crucible_adapters.retries import Clock
from crucible_kit.adapter import AdapterContext, AdapterDescription

_VERSION_TAG = "crucible.version_id"
_STAGE_TAG = "crucible.stage"
_STAGES = {
    registry_pb2.VERSION_STAGE_EXPERIMENT: "experiment",
    registry_pb2.VERSION_STAGE_STAGING: "staging",
    registry_pb2.VERSION_STAGE_PRODUCTION: "production",
    registry_pb2.VERSION_STAGE_ARCHIVED: "archived",
}
_ALIASES = ("staging", "production")
_MOST_KNOWN = 10_000
# MLflow takes these for places of its own or of its machine, and refuses what is not below them.
_MLFLOW_S_SCHEMES = {"", "file", "runs", "models", "mlflow-artifacts", "dbfs"}
# What MLflow refuses, and what a filter can't hold.
_NOT_IN_A_NAME = re.compile(r"""[/:'"`\\%\x00-\x1f]""")
_NOT_IN_A_TAG = re.compile(r"[^/\w.\- :]")


class _There(NamedTuple):
    """A version on the server: its number, and the stage that it was told; empty: none yet."""

    number: str
    stage: str


class MlflowModelRegistry(SqliteModelRegistry):
    """Model versions in registry.db in the data folder and on an MLflow server.

    Args:
        clock: time and chance between tries; tests give their own.
    """

    description = AdapterDescription(
        name="mlflow-registry", port="registry", options=MlflowExperimentOptions, secrets=SECRETS
    )

    def __init__(
        self, options: MlflowExperimentOptions, context: AdapterContext, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._server = MlflowServer("mlflow", options, context.secrets, clock)
        super().__init__(options, context)
        self._experiment = options.experiment
        # One at a time: two calls for one version would both find none there.
        self._turn = threading.Lock()
        self._models: set[str] = set()
        self._known: dict[str, _There] = {}

    async def close(self) -> None:
        """Waits for what is under way and closes the file."""
        await self._server.close()
        await super().close()

    async def RegisterVersion(
        self, request: registry_pb2.RegisterVersionRequest, context: Any
    ) -> registry_pb2.RegisterVersionResponse:
        response = await super().RegisterVersion(request, context)
        await self._server.run(context, partial(self._bring, response.version))
        return response

    async def PromoteVersion(
        self, request: registry_pb2.PromoteVersionRequest, context: Any
    ) -> registry_pb2.PromoteVersionResponse:
        response = await super().PromoteVersion(request, context)
        await self._server.run(context, partial(self._bring, response.version, promoted=True))
        return response

    async def AddArtifact(
        self, request: registry_pb2.AddArtifactRequest, context: Any
    ) -> registry_pb2.AddArtifactResponse:
        response = await super().AddArtifact(request, context)
        await self._server.run(context, partial(self._bring, response.version, added=request.artifact))
        return response

    def _bring(
        self,
        version: registry_pb2.ModelVersion,
        stores: Stores,
        *,
        promoted: bool = False,
        added: registry_pb2.Artifact | None = None,
    ) -> None:
        """Brings MLflow to a version as it is.

        Args:
            promoted: its stage was set just now, if only to what it was: it takes that stage's alias.
            added: the artifact that was added.
        """
        from mlflow.exceptions import RestException

        with self._turn:
            name = model_name(version.model_name)
            known = version.version_id in self._known
            try:
                self._bring_up(stores, name, version, promoted=promoted, added=added)
            except RestException as error:
                if not known or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                # Somebody has deleted it there: the next look makes it anew.
                self._known.pop(version.version_id)
                self._models.discard(name)
                self._bring_up(stores, name, version, promoted=promoted, added=added)

    def _bring_up(
        self,
        stores: Stores,
        name: str,
        version: registry_pb2.ModelVersion,
        *,
        promoted: bool,
        added: registry_pb2.Artifact | None,
    ) -> None:
        from mlflow.entities.model_registry import ModelVersionTag

        there = self._known.get(version.version_id)
        if there is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
                self._models.clear()
            there = self._known[version.version_id] = self._find(stores, name, version)
        if added is not None:
            stores.registry.set_model_version_tag(name, there.number, ModelVersionTag(*_artifact_tag(added)))
        stage = _STAGES.get(version.stage, str(version.stage))
        if not promoted and stage == there.stage:
            return
        if there.stage or stage in _ALIASES:
            self._set_aliases(stores, name, there.number, stage)
        # Last: it says that the aliases are right.
        stores.registry.set_model_version_tag(name, there.number, ModelVersionTag(_STAGE_TAG, stage))
        self._known[version.version_id] = _There(there.number, stage)

    def _find(self, stores: Stores, name: str, version: registry_pb2.ModelVersion) -> _There:
        """A version that is there, or is made."""
        self._make_model(stores, name)
        found = stores.registry.search_model_versions(
            f"name = '{name}' AND tags.`{_VERSION_TAG}` = '{version.version_id}'", max_results=1
        )
        for each in found:
            return _There(str(each.version), each.tags.get(_STAGE_TAG, ""))
        return _There(self._make(stores, name, version), "")

    def _make_model(self, stores: Stores, name: str) -> None:
        from mlflow.exceptions import RestException

        if name in self._models:
            return
        try:
            stores.registry.create_registered_model(name)
        except RestException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self._models.add(name)

    def _make(self, stores: Stores, name: str, version: registry_pb2.ModelVersion) -> str:
        from mlflow.entities.model_registry import ModelVersionTag

        tags = {
            _VERSION_TAG: version.version_id,
            RUN_TAG: version.run_id,
            "crucible.model_name": version.model_name,
            "crucible.checkpoint_uri": version.checkpoint_uri,
            "crucible.manifest_sha256": version.manifest_sha256,
            "crucible.base_model": version.base_model,
            "crucible.config_sha256": version.config_sha256,
            **dict(_artifact_tag(each) for each in version.artifacts),
        }
        own = urlsplit(version.checkpoint_uri).scheme in _MLFLOW_S_SCHEMES
        made = stores.registry.create_model_version(
            name,
            f"crucible://versions/{version.version_id}" if own else version.checkpoint_uri,
            run_id=find_run(stores, self._experiment, version.run_id),
            tags=[ModelVersionTag(key, value) for key, value in tags.items() if value],
        )
        return str(made.version)

    def _set_aliases(self, stores: Stores, name: str, number: str, stage: str) -> None:
        held = stores.registry.get_registered_model(name).aliases
        for alias in _ALIASES:
            has = str(held.get(alias, "")) == number
            if alias == stage and not has:
                stores.registry.set_registered_model_alias(name, alias, number)
            elif alias != stage and has:
                stores.registry.delete_registered_model_alias(name, alias)


def model_name(name: str) -> str:
    """A model line's name as MLflow can have it: one with / or : has _ for them, and a hash at its end."""
    plain = _NOT_IN_A_NAME.sub("_", name).strip()
    if plain == name and posixpath.normpath(name) == name and not name.startswith("."):
        return name
    return f"{plain.lstrip('.')[:240]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _artifact_tag(artifact: registry_pb2.Artifact) -> tuple[str, str]:
    """Key and value. A name with characters that no key can have has _ for them, and a hash at its end."""
    plain = _NOT_IN_A_TAG.sub("_", artifact.name)
    kept = "/".join(part for part in plain.split("/") if part not in ("", ".", ".."))
    if kept != artifact.name or len(kept) > 220:
        kept = f"{kept[:200]}-{hashlib.sha256(artifact.name.encode()).hexdigest()[:12]}"
    return f"crucible.artifact.{kept}", artifact.uri
