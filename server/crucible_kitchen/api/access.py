"""Who may call what: one table, deny by default."""

from __future__ import annotations

import enum
import hashlib
import hmac
import logging
import stat
from collections.abc import Mapping
from pathlib import Path

from crucible_kit.errors import (
    KitchenError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    field_error,
)
from crucible_kitchen.relay.methods import PORT_MUTATIONS, PORT_ROLES

logger = logging.getLogger(__name__)

# How soon a client should look for the server that takes over.
DRAINING_RETRY_SECONDS = 2.0
_MIN_TOKEN_CHARACTERS = 16


class Role(enum.IntEnum):
    """What a caller may do; a higher role may do all that a lower one may."""

    READ = 1
    RUN = 2
    ADMIN = 3


_RUN = "/crucible.kitchen.v1.RunService/"
_CATALOG = "/crucible.kitchen.v1.CatalogService/"
_ADAPTERS = "/crucible.kitchen.v1.AdapterAdminService/"
ATTACH = "/crucible.adapter.v1.AdapterGatewayService/Attach"
"""How adapters that dial out come in."""

METHOD_ROLES: dict[str, Role] = {
    f"{_RUN}CreateRun": Role.RUN,
    f"{_RUN}StartRun": Role.RUN,
    f"{_RUN}PauseRun": Role.RUN,
    f"{_RUN}ResumeRun": Role.RUN,
    f"{_RUN}CancelRun": Role.RUN,
    f"{_RUN}GetRun": Role.READ,
    f"{_RUN}ListRuns": Role.READ,
    f"{_RUN}WaitRun": Role.READ,
    f"{_RUN}WatchRun": Role.READ,
    f"{_RUN}ListRunEvents": Role.READ,
    f"{_CATALOG}ListRecipes": Role.READ,
    f"{_CATALOG}GetRecipe": Role.READ,
    f"{_CATALOG}ListWorkflows": Role.READ,
    f"{_CATALOG}GetWorkflow": Role.READ,
    f"{_CATALOG}ListStages": Role.READ,
    f"{_CATALOG}ListMetricDefinitions": Role.READ,
    f"{_ADAPTERS}ListAdapters": Role.READ,
    # It starts the adapter's process.
    f"{_ADAPTERS}ProbeAdapter": Role.ADMIN,
    f"{_ADAPTERS}AddAdapter": Role.ADMIN,
    f"{_ADAPTERS}RemoveAdapter": Role.ADMIN,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.READ,
    "/grpc.channelz.v1.Channelz/GetTopChannels": Role.READ,
    "/grpc.channelz.v1.Channelz/GetServers": Role.READ,
    "/grpc.channelz.v1.Channelz/GetServer": Role.READ,
    "/grpc.channelz.v1.Channelz/GetServerSockets": Role.READ,
    "/grpc.channelz.v1.Channelz/GetChannel": Role.READ,
    "/grpc.channelz.v1.Channelz/GetSubchannel": Role.READ,
    "/grpc.channelz.v1.Channelz/GetSocket": Role.READ,
    **{method: Role[name.upper()] for method, name in PORT_ROLES.items()},
}
# A load balancer asks without a token; what an adapter needs depends on the name in its first message.
OPEN_METHODS = frozenset(
    {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/List", ATTACH}
)
MUTATIONS = (
    PORT_MUTATIONS
    | {f"{_RUN}{name}" for name in ("CreateRun", "StartRun", "PauseRun", "ResumeRun", "CancelRun")}
    | {f"{_ADAPTERS}{name}" for name in ("AddAdapter", "RemoveAdapter")}
)


class Tokens:
    """Bearer tokens with their roles; keeps hashes only."""

    def __init__(self, roles: Mapping[str, Role]) -> None:
        """`roles` by token."""
        self._roles = [(_sha256(token), role) for token, role in roles.items()]

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Reads a file with one `role: token` a line; empty lines and lines that begin with # don't count.

        Raises:
            InvalidArgumentError: TOKENS_INVALID naming the line, never the token.
        """
        try:
            text = path.read_text("utf-8")
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise _bad_file(f"cannot read {path}: it must be a readable text file") from error
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            logger.warning("the tokens file %s is readable by other users: chmod 600 it", path)
        roles: dict[str, Role] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            name, separator, token = (part.strip() for part in line.partition(":"))
            token = token.strip("\"'")
            if not separator or name.upper() not in Role.__members__:
                raise _bad_file(f"{path} line {number}: must be `role: token` with role read, run or admin")
            if len(token) < _MIN_TOKEN_CHARACTERS or not token.isascii() or any(each.isspace() for each in token):
                raise _bad_file(
                    f"{path} line {number}: a token has at least {_MIN_TOKEN_CHARACTERS} ASCII characters and no spaces"
                )
            if token in roles:
                raise _bad_file(f"{path} line {number}: the token stands in an earlier line already")
            roles[token] = Role[name.upper()]
        if not roles:
            raise _bad_file(f"{path}: holds no token; write lines of `role: token`")
        return cls(roles)

    def role(self, token: str) -> Role | None:
        """The token's role; None for an unknown one. Takes the same time whichever token it is."""
        given, found = _sha256(token), None
        for known, role in self._roles:
            if hmac.compare_digest(given, known):
                found = role
        return found


class AccessGuard:
    """Refuses calls by method, token and the server's state: the guard of the boundary.

    Attributes:
        draining: the server stops; nothing is to be changed any more.
    """

    def __init__(self, tokens: Tokens | None) -> None:
        """`tokens` None: everybody may call everything in the table."""
        self._tokens = tokens
        self.draining = False

    def __call__(self, method: str, metadata: Mapping[str, str | bytes]) -> None:
        """Lets the call through or raises.

        Raises:
            UnauthenticatedError: TOKEN_MISSING, TOKEN_INVALID.
            PermissionDeniedError: ROLE_MISSING.
            UnimplementedError: METHOD_MISSING, the method is not in the table.
            UnavailableError: DRAINING.
        """
        if method in OPEN_METHODS:
            return
        if self._tokens is not None:
            check_role(self._tokens, metadata, method, METHOD_ROLES.get(method, Role.READ))
        if method not in METHOD_ROLES:
            raise UnimplementedError(
                f"{method} is not a method of this server: reflection lists those that are",
                reason="METHOD_MISSING",
                metadata={"method": method},
            )
        if self.draining and method in MUTATIONS:
            raise draining_error()


def check_role(tokens: Tokens, metadata: Mapping[str, str | bytes], method: str, needed: Role) -> None:
    """Lets a caller through whose token has the role that a method needs.

    Raises:
        UnauthenticatedError: TOKEN_MISSING, TOKEN_INVALID.
        PermissionDeniedError: ROLE_MISSING.
    """
    if not metadata.get("authorization"):
        raise token_missing()
    token = bearer_token(metadata)
    role = tokens.role(token) if token else None
    if role is None:
        raise token_invalid("one of its tokens file")
    if role < needed:
        raise PermissionDeniedError(
            f"{method} needs the role {needed.name.lower()}, this token has {role.name.lower()}: use another token",
            reason="ROLE_MISSING",
            metadata={"method": method, "needed": needed.name.lower(), "role": role.name.lower()},
        )


def token_missing() -> UnauthenticatedError:
    """The error of a call without a token where one is needed."""
    return UnauthenticatedError(
        "this server asks for a token: send the metadata `authorization: Bearer TOKEN`", reason="TOKEN_MISSING"
    )


def token_invalid(expected: str) -> UnauthenticatedError:
    """The error of a token that is not `expected`."""
    return UnauthenticatedError(
        f"the token is not one of this server: send `authorization: Bearer TOKEN` with {expected}",
        reason="TOKEN_INVALID",
    )


def bearer_token(metadata: Mapping[str, str | bytes]) -> str:
    """The bearer token among a call's metadata; empty: there is none."""
    scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def draining_error() -> UnavailableError:
    """What a server that is stopping answers."""
    return UnavailableError(
        "the server is shutting down: try again when it is back", reason="DRAINING", retry_delay=DRAINING_RETRY_SECONDS
    )


def _sha256(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _bad_file(problem: str) -> KitchenError:
    return field_error("tokens", problem, reason="TOKENS_INVALID")
