"""An adapter as an author writes it, and a little more for the tests: python -m tests.kit.ten_lines"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible.type.v1 import tensor_pb2
from crucible_kit.author import run_adapter
from crucible_kit.errors import NotFoundError


class Blobs(blob_pb2_grpc.BlobStoreServiceServicer):
    """Knows one blob."""

    async def StatBlob(self, request: blob_pb2.StatBlobRequest, context: Any) -> blob_pb2.StatBlobResponse:
        if request.key != "mine":
            raise NotFoundError(f"no blob {request.key!r}", reason="BLOB_NOT_FOUND", metadata={"key": request.key})
        return blob_pb2.StatBlobResponse(blob=tensor_pb2.BlobRef(uri="blob:mine"))

    async def close(self) -> None:
        print("closed", file=sys.stderr)


class SizedOptions(BaseModel):
    """What Sized takes."""

    size: int = Field(gt=0)


class Sized(Blobs):
    """Takes settings."""

    options = SizedOptions
    capabilities = ("blob.sized",)

    def __init__(self) -> None:
        self.settings: list[tuple[int, dict[str, str]]] = []

    async def configure(self, options: SizedOptions, secrets: Mapping[str, str]) -> list[str]:
        self.settings.append((options.size, dict(secrets)))
        return ["that is small"] if options.size < 3 else []


if __name__ == "__main__":
    run_adapter(name="ten-lines", ports={"blob": Blobs()})
