"""Credentials of a TLS connection, from PEM files."""

from __future__ import annotations

from pathlib import Path

import grpc

from crucible_kit.tls import TlsFields, client_credentials

_FIELDS = TlsFields(ca="ca_cert", cert="client_cert", key="client_key")


def credentials(
    *, ca_cert: Path | None = None, client_cert: Path | None = None, client_key: Path | None = None
) -> grpc.ChannelCredentials:
    """TLS with the system's authorities or those of `ca_cert`, and the client's own certificate if there is one.

    Raises:
        InvalidArgumentError: CONFIG_INVALID when a file can't be used or certificate and key don't come together.
    """
    return client_credentials(ca=ca_cert, cert=client_cert, key=client_key, fields=_FIELDS)
