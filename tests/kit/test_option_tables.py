"""The pages of the stores tell every option as the code has it."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from crucible_adapters.blob.fsspec import FsspecBlobOptions
from crucible_adapters.blob.gcs import GcsOptions
from crucible_adapters.metrics.tensorboard import TensorboardOptions
from crucible_adapters.mlflow_server import MlflowExperimentOptions
from tests.option_tables import check_table

_TABLES: dict[tuple[str, str], type[BaseModel]] = {
    ("fsspec.md", "Options"): FsspecBlobOptions,
    ("fsspec.md", "storage_options of gs://"): GcsOptions,
    ("mlflow.md", "Options"): MlflowExperimentOptions,
    ("tensorboard.md", "Options"): TensorboardOptions,
}


@pytest.mark.parametrize(
    ("page", "heading", "model"), [(*table, model) for table, model in _TABLES.items()], ids=map(" ".join, _TABLES)
)
def test_every_option_is_told(page: str, heading: str, model: type[BaseModel]) -> None:
    check_table(page, heading, model)
