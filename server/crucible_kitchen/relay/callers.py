"""Who a client is, and what only this server can sign."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Any

from crucible_kit.chunks import fsync_folder
from crucible_kit.errors import FailedPreconditionError
from crucible_kitchen.api.access import bearer_token

_SECRET_BYTES = 32
LOCAL = "local"
"""Everybody, on a server that asks for neither token nor certificate."""


class Callers:
    """Names callers: by their token, else by the name in their certificate, else all alike.

    Args:
        secret: of this server; names say nothing about the token without it.
        with_tokens: whether the server asks for tokens. One that comes unasked means nothing.
    """

    def __init__(self, secret: bytes, *, with_tokens: bool) -> None:
        self._secret = secret
        self._with_tokens = with_tokens

    def of(self, context: Any) -> str:
        """The caller's name, 16 hex digits or `local`: the same for every call with one token or certificate name."""
        if self._with_tokens:
            return self._name("token", [bearer_token(dict(context.invocation_metadata() or ())).encode()])
        identities = context.peer_identities()
        return self._name("certificate", sorted(identities)) if identities else LOCAL

    def _name(self, kind: str, identities: list[bytes]) -> str:
        return sign(self._secret, "caller", kind, *identities)[:16]


def sign(secret: bytes, *parts: str | bytes) -> str:
    """HMAC-SHA256 over the parts, 64 hex digits; no two lists of parts have the same bytes."""
    signature = hmac.new(secret, digestmod=hashlib.sha256)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        signature.update(len(data).to_bytes(8, "little") + data)
    return signature.hexdigest()


def load_secret(path: Path) -> bytes:
    """The secret in a file, which is made when it is missing; only this user can read it.

    Raises:
        FailedPreconditionError: DATA_FOLDER_UNUSABLE when it can't be read or written or is not one of ours.
    """
    try:
        if not path.exists():
            _write_secret(path)
        secret = path.read_bytes()
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    if len(secret) != _SECRET_BYTES:
        raise _unusable(path, f"has {len(secret)} bytes, not {_SECRET_BYTES}")
    return secret


def _write_secret(path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(_SECRET_BYTES))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)


def _unusable(path: Path, problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{path}, which signs the addresses of clients' checkpoints, {problem}: restore it, or delete it and with it "
        "the clients' access to the checkpoints that they have saved",
        reason="DATA_FOLDER_UNUSABLE",
        metadata={"path": path},
    )
