"""TLS from PEM files. gRPC takes bad ones without a word and then fails every handshake; here they are found first."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

import grpc

from crucible_kit.errors import InvalidArgumentError, field_error


class TlsFields(NamedTuple):
    """What the files are called where they are given, for messages."""

    ca: str = "tls-ca"
    cert: str = "tls-cert"
    key: str = "tls-key"


_ARGUMENTS = TlsFields()


def client_credentials(
    *, ca: Path | None, cert: Path | None, key: Path | None, fields: TlsFields = _ARGUMENTS
) -> grpc.ChannelCredentials:
    """For a connection to a server whose certificate is signed by `ca`, or by one of the system's authorities; with a
    certificate of one's own for a server that asks for one.

    Raises:
        InvalidArgumentError: CONFIG_INVALID for files that can't be used.
    """
    _check(ssl.PROTOCOL_TLS_CLIENT, ca, cert, key, fields)
    return grpc.ssl_channel_credentials(
        root_certificates=_read(ca), private_key=_read(key), certificate_chain=_read(cert)
    )


def server_credentials(
    *, cert: Path, key: Path, client_ca: Path | None, fields: TlsFields = _ARGUMENTS
) -> grpc.ServerCredentials:
    """For a server; with `client_ca` it serves only clients whose certificate that authority has signed.

    Raises:
        InvalidArgumentError: CONFIG_INVALID for files that can't be used.
    """
    _check(ssl.PROTOCOL_TLS_SERVER, client_ca, cert, key, fields)
    return grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())],
        root_certificates=_read(client_ca),
        require_client_auth=client_ca is not None,
    )


def _check(protocol: ssl._SSLMethod, ca: Path | None, cert: Path | None, key: Path | None, fields: TlsFields) -> None:
    if (cert is None) != (key is None):
        missing = fields.key if key is None else fields.cert
        raise field_error(missing, f"{fields.cert} and {fields.key} go together: give both", reason="CONFIG_INVALID")
    context = ssl.SSLContext(protocol)
    try:
        if ca is not None:
            context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(fields.ca, [ca], error, fields) from error
    try:
        if cert is not None:
            # The password keeps OpenSSL from asking on the terminal.
            context.load_cert_chain(cert, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise _unusable(fields.cert, [cert, key], error, fields) from error


def _unusable(field: str, paths: list[Path | None], error: Exception, fields: TlsFields) -> InvalidArgumentError:
    files = ", ".join(str(path) for path in paths if path is not None)
    return field_error(
        field,
        f"{files} can't be used ({error}): they are PEM files, and {fields.key} is the key of {fields.cert}",
        reason="CONFIG_INVALID",
    )


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
