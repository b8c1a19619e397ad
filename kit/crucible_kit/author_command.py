"""The command line of an adapter."""

from __future__ import annotations

import argparse
import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from crucible_kit.addresses import check_address, is_local
from crucible_kit.author_process import LISTEN_VARIABLE
from crucible_kit.boundary import Guard
from crucible_kit.errors import UnauthenticatedError
from crucible_kit.tls import client_credentials, server_credentials


@dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line, or the host, asks for.

    Attributes:
        listen: where to serve; empty: it dials out.
        attach: the kitchen to dial; empty: it listens.
        name: what to attach as.
        token: shown to the kitchen, or expected of callers; empty: none.
        from_host: a host has started the process, and ends it by closing its stdin.
        insecure: plain text beyond this machine is all right.
    """

    listen: str
    attach: str
    name: str
    token: str
    from_host: bool
    insecure: bool
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """For the connection to the kitchen; None: plain text. Raises CONFIG_INVALID."""
        files = (self.tls_ca, self.tls_cert, self.tls_key)
        if files == (None, None, None) and (self.insecure or is_local(self.attach)):
            return None
        return client_credentials(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key)

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """For whoever connects; None: plain text. Raises CONFIG_INVALID."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return server_credentials(cert=self.tls_cert, key=self.tls_key, client_ca=self.tls_ca)

    def guard(self) -> Guard | None:
        """Lets in whoever has the token; None: everybody."""
        if not self.token:
            return None
        expected = f"bearer {self.token}".encode()

        def check(method: str, metadata: Mapping[str, str | bytes]) -> None:
            scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
            if not hmac.compare_digest(f"{scheme.lower()} {token.strip()}".encode(), expected):
                raise UnauthenticatedError(
                    "this adapter asks for its token: set token_env in the manifest",
                    reason="TOKEN_INVALID" if token else "TOKEN_MISSING",
                )

        return check


def parse_command(name: str, argv: Sequence[str] | None) -> Command:
    """The command line, or the environment where that says nothing. Ends the process with status 2 when it is wrong."""
    parser = argparse.ArgumentParser(description=f"The adapter {name}.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--listen", metavar="ADDRESS", help="serve there: host:port (0 takes a free one) or unix:PATH")
    mode.add_argument("--attach", metavar="ADDRESS", help="dial out to the kitchen there, and serve it for ever")
    parser.add_argument(
        "--name", metavar="NAME", help=f"what to attach as, the manifest's attach:NAME [default: {name}]"
    )
    parser.add_argument(
        "--token-env",
        metavar="VARIABLE",
        help="environment variable with the bearer token that the kitchen is shown, or that callers must show",
    )
    parser.add_argument(
        "--tls-ca", type=Path, metavar="FILE", help="PEM: authorities of the kitchen's certificate, or of callers'"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM: the adapter's own certificate")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM: the key of --tls-cert")
    parser.add_argument("--insecure", action="store_true", help="plain text, even beyond this machine")
    given = parser.parse_args(argv)
    from_host = not given.listen and not given.attach
    listen = os.environ.get(LISTEN_VARIABLE, "") if from_host else given.listen or ""
    if from_host and not listen:
        parser.error(f"give --listen ADDRESS or --attach ADDRESS (a host that starts adapters sets {LISTEN_VARIABLE})")
    if given.name and not given.attach:
        parser.error("--name goes with --attach")
    try:
        check_address(given.attach or listen)
    except ValueError as error:
        parser.error(f"{'--attach' if given.attach else '--listen'}: {error}")
    if (given.tls_cert is None) != (given.tls_key is None):
        parser.error("--tls-cert and --tls-key go together: give both")
    if listen and given.tls_ca and not given.tls_cert:
        parser.error("--tls-ca goes with --tls-cert and --tls-key, or with --attach")
    if listen and not (is_local(listen) or given.tls_cert or given.insecure):
        parser.error(f"{listen} is reachable from other machines: give --tls-cert and --tls-key, or --insecure")
    return Command(
        listen=listen,
        attach=given.attach or "",
        name=given.name or name,
        token=_token(parser, given.token_env),
        from_host=from_host,
        insecure=given.insecure,
        tls_ca=given.tls_ca,
        tls_cert=given.tls_cert,
        tls_key=given.tls_key,
    )


def _token(parser: argparse.ArgumentParser, variable: str | None) -> str:
    token = os.environ.get(variable, "") if variable else ""
    if variable and not token:
        parser.error(f"--token-env: the environment variable {variable} is not set")
    return token
