"""Credentials of a TLS connection, from PEM files."""

from __future__ import annotations

from pathlib import Path

import grpc

from crucible_kit.errors import field_error


def credentials(
    *, ca_cert: Path | None = None, client_cert: Path | None = None, client_key: Path | None = None
) -> grpc.ChannelCredentials:
    """TLS with the system's authorities or those of `ca_cert`, and the client's own certificate if there is one.

    Raises:
        InvalidArgumentError: CONFIG_INVALID when a file can't be read or certificate and key don't come together.
    """
    if (client_cert is None) != (client_key is None):
        missing = "client_key" if client_key is None else "client_cert"
        raise field_error(missing, "client_cert and client_key go together: give both", reason="CONFIG_INVALID")
    return grpc.ssl_channel_credentials(
        root_certificates=_read("ca_cert", ca_cert),
        private_key=_read("client_key", client_key),
        certificate_chain=_read("client_cert", client_cert),
    )


def _read(field: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        problem = f"cannot read {path} ({error.strerror}): give a PEM file"
        raise field_error(field, problem, reason="CONFIG_INVALID") from error
