"""Clients' checkpoints: names that no two of them share, and addresses that only their owner can use."""

from __future__ import annotations

import hmac
from typing import NamedTuple
from urllib.parse import quote, unquote

from crucible_kit.errors import NotFoundError, field_error
from crucible_kitchen.relay.callers import sign

_SCHEME = "kitchen-checkpoint"
_SIGNATURE_DIGITS = 32
# A run's checkpoints lie under RUN_ID/attempt-N: no run has this folder's second part.
_FOLDER = "clients"
_MAX_NAME = 255


class Address(NamedTuple):
    """A checkpoint as its adapter knows it.

    Attributes:
        uri: the adapter's own address.
        base_model: the base model of a LoRA checkpoint, as its owner named it; empty: it holds a whole model.
    """

    uri: str
    base_model: str


class Checkpoints:
    """Wraps adapters' addresses. What a caller owns follows from the address itself, signed with the server's secret:
    nothing is kept, and an address is good for as long as the checkpoint and the secret are.

        kitchen-checkpoint:SIGNATURE:BASE_MODEL:URI
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def name(self, caller: str, name: str, *, field: str) -> str:
        """The adapter's name for a caller's checkpoint. Raises INVALID_ARGUMENT for one that gets too long."""
        prefix = f"{_FOLDER}/{caller}/"
        most = _MAX_NAME - len(prefix)
        if len(name) > most:
            raise field_error(field, f"has {len(name)} characters, at most {most} are allowed")
        return prefix + name

    def wrap(self, caller: str, address: Address) -> str:
        """The address as its owner gets it."""
        signature = self._signature(caller, address)
        return f"{_SCHEME}:{signature}:{quote(address.base_model, safe='')}:{address.uri}"

    def unwrap(self, caller: str, uri: str) -> Address | None:
        """The adapter's address; None for one that this server has not given to this caller."""
        scheme, _, rest = uri.partition(":")
        signature, _, rest = rest.partition(":")
        base_model, separator, inner = rest.partition(":")
        address = Address(inner, unquote(base_model))
        genuine = hmac.compare_digest(signature.encode(), self._signature(caller, address).encode())
        return address if scheme == _SCHEME and separator and genuine else None

    def get(self, caller: str, uri: str, *, field: str) -> Address:
        """As unwrap. Raises NotFoundError CHECKPOINT_NOT_FOUND, the same for unknown ones and somebody else's."""
        address = self.unwrap(caller, uri)
        if address is None:
            raise NotFoundError(
                f"{field}: you have no checkpoint {uri[:256]!r}: give an address that SaveCheckpoint or "
                "UploadCheckpoint of this server has answered",
                reason="CHECKPOINT_NOT_FOUND",
                metadata={"field": field, "uri": uri},
            )
        return address

    def resolve(self, caller: str, uri: str, *, field: str) -> str:
        """The adapter's address of a caller's checkpoint; one that this server has not made, such as a run's, as it is.

        Raises:
            NotFoundError: CHECKPOINT_NOT_FOUND for one that it has made for somebody else.
        """
        return self.get(caller, uri, field=field).uri if uri.startswith(f"{_SCHEME}:") else uri

    def _signature(self, caller: str, address: Address) -> str:
        return sign(self._secret, "checkpoint", caller, address.base_model, address.uri)[:_SIGNATURE_DIGITS]
