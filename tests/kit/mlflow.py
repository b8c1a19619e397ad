"""An MLflow tracking server on loopback: MLflow's own application over a SQLite file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kit.scripted import ScriptedServer


class Mlflow(ScriptedServer):
    """The server; paths of its requests are below the API's root.

    Attributes:
        tracking, registry: the stores that the application has, without the way over HTTP.
    """

    def __init__(self, folder: Path) -> None:
        os.environ.update(
            MLFLOW_DISABLE_TELEMETRY="true",
            MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE="true",
            _MLFLOW_SERVER_FILE_STORE=f"sqlite:///{folder / 'mlflow.db'}",
            _MLFLOW_SERVER_REGISTRY_STORE=f"sqlite:///{folder / 'mlflow.db'}",
            _MLFLOW_SERVER_ARTIFACT_ROOT=str(folder / "artifacts"),
        )
        from mlflow.server import app, handlers

        super().__init__(app, root="/api/2.0/mlflow")
        self.tracking: Any = handlers._get_tracking_store()
        self.registry: Any = handlers._get_model_registry_store()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[Mlflow]:
    """A server for the block."""
    server = Mlflow(folder)
    try:
        yield server
    finally:
        server.close()
