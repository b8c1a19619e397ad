"""Datasets that throw their secret back at whoever asks."""

from __future__ import annotations

import logging
from typing import Any

from crucible_adapters.dataset.local import LocalDatasetOptions, LocalDatasets
from crucible_kit.adapter import AdapterContext, AdapterDescription
from crucible_kit.errors import FieldViolation, InvalidArgumentError

logger = logging.getLogger(__name__)


class LeakyDatasets(LocalDatasets):
    """Fails by a defect when asked to open rows, and by an error of its own when asked to find them."""

    description = AdapterDescription(name="leaky-datasets", port="dataset", secrets=("password",))

    def __init__(self, options: Any, context: AdapterContext) -> None:
        super().__init__(LocalDatasetOptions(), context)
        self._secrets = context.secrets

    async def OpenDataset(self, request: Any, context: Any) -> Any:
        password = self._secrets["password"]
        logger.warning("logging in with %s", password)
        try:
            raise ValueError(f"bad password {password}")
        except ValueError as error:
            raise RuntimeError(f"no rows for {self._secrets} with {password}") from error

    async def FindDataset(self, request: Any, context: Any) -> Any:
        password = self._secrets["password"]
        raise InvalidArgumentError(
            f"{password} is no password",
            reason="PASSWORD_WRONG",
            metadata={"password": password},
            fields=[FieldViolation("source.uri", f"needs another password than {password}")],
        )
