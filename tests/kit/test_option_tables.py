"""The pages of the stores tell every option as the code has it."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from crucible_adapters.blob.fsspec import FsspecBlobOptions
from crucible_adapters.metrics.tensorboard import TensorboardOptions
from crucible_adapters.mlflow_server import MlflowExperimentOptions
from tests.option_tables import check_table

_PAGES: dict[str, type[BaseModel]] = {
    "fsspec.md": FsspecBlobOptions,
    "mlflow.md": MlflowExperimentOptions,
    "tensorboard.md": TensorboardOptions,
}


@pytest.mark.parametrize(("page", "model"), _PAGES.items(), ids=_PAGES)
def test_every_option_is_told(page: str, model: type[BaseModel]) -> None:
    check_table(page, "Options", model)
