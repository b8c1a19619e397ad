"""TLS of adapters, from PEM files."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from crucible_kit.errors import field_error


def client_credentials(*, ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials:
    """For a connection to a server whose certificate is signed by `ca`, or by one of the system's authorities; with a
    certificate of one's own for a server that asks for one.

    Raises:
        InvalidArgumentError: CONFIG_INVALID for files that can't be used.
    """
    _check(ssl.PROTOCOL_TLS_CLIENT, ca, cert, key)
    return grpc.ssl_channel_credentials(
        root_certificates=_read(ca), private_key=_read(key), certificate_chain=_read(cert)
    )


def server_credentials(*, cert: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """For a server; with `client_ca` it serves only clients whose certificate that authority has signed.

    Raises:
        InvalidArgumentError: CONFIG_INVALID for files that can't be used.
    """
    _check(ssl.PROTOCOL_TLS_SERVER, client_ca, cert, key)
    return grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())],
        root_certificates=_read(client_ca),
        require_client_auth=client_ca is not None,
    )


def _check(protocol: ssl._SSLMethod, ca: Path | None, cert: Path | None, key: Path | None) -> None:
    if (cert is None) != (key is None):
        missing = "tls-key" if key is None else "tls-cert"
        raise field_error(missing, "tls-cert and tls-key go together: give both", reason="CONFIG_INVALID")
    # gRPC takes bad PEM without a word and then fails every handshake.
    context = ssl.SSLContext(protocol)
    try:
        if ca is not None:
            context.load_verify_locations(ca)
        if cert is not None:
            # The password keeps OpenSSL from asking on the terminal.
            context.load_cert_chain(cert, key, password="")
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(path) for path in (ca, cert, key) if path is not None)
        raise field_error(
            "tls-ca" if cert is None else "tls-cert",
            f"the files {files} can't be used ({error}): they are PEM, and tls-key is the key of tls-cert",
            reason="CONFIG_INVALID",
        ) from error


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
