"""Looking for secrets in what a server has told and left."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import grpc
import pytest

from crucible_kit.errors import KitchenError


def written(secret: str) -> list[bytes]:
    """How a secret may stand in a file: as it is, in JSON, in a URL, in base64; and its beginning, left by a cut."""
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    forms = [secret, json.dumps(secret)[1:-1], quote(secret, safe=""), encoded, secret[:9]]
    return [form.encode() for form in forms]


async def told(call: Any) -> bytes:
    """All that a refused call tells its caller."""
    with pytest.raises(KitchenError) as caught:
        await call
    error, cause = caught.value, caught.value.__cause__
    assert isinstance(cause, grpc.aio.AioRpcError)
    trailers = b"".join(
        each if isinstance(each, bytes) else str(each).encode()
        for pair in cause.trailing_metadata() or ()
        for each in pair
    )
    return f"{error.reason} {error.message} {error.metadata} {error.fields} {cause!r}".encode() + trailers


def leaks(seen: Mapping[str, bytes], *secrets: str) -> list[tuple[str, bytes]]:
    """Where secrets stand, and how."""
    return [(place, form) for place, text in seen.items() for each in secrets for form in written(each) if form in text]
