"""Secrets of adapters: read from the server's environment by name, and kept out of everything that shows."""

from __future__ import annotations

import os
from typing import NamedTuple

from crucible_kit import redaction
from crucible_kit.errors import InvalidArgumentError
from crucible_kit.redaction import Secrets
from crucible_kitchen.ports.mapping import PortMapping


class MappingSecrets(NamedTuple):
    """The values behind the names in a mapping.

    Attributes:
        secrets: by the adapter's name for them.
        token: of token_env; empty: none.
    """

    secrets: Secrets
    token: str


def read_secrets(port: str, mapping: PortMapping, *, where: str) -> MappingSecrets:
    """Reads and registers a mapping's secrets. `where` is its path, such as manifest.ports.llm.

    Raises:
        InvalidArgumentError: MANIFEST_INVALID naming port, secret and variable when the variable is missing or its
            value can't be used; never the value.
    """
    values = {
        name: _value(port, variable, field=f"{where}.secrets.{name}", what=f"the secret {name}")
        for name, variable in mapping.secrets.items()
    }
    token = ""
    if mapping.token_env:
        field = f"{where}.token_env"
        token = _value(port, mapping.token_env, field=field, what="the token")
        if not all("!" <= each <= "~" for each in token):
            problem = "holds characters that a token can't have: it has visible ASCII characters and no spaces"
            raise _bad_variable(port, mapping.token_env, field=field, what="the token", problem=problem)
    redaction.register([*values.values(), *([token] if token else [])])
    return MappingSecrets(Secrets(values), token)


def _value(port: str, variable: str, *, field: str, what: str) -> str:
    value = os.environ.get(variable)
    if value is None:
        raise _bad_variable(port, variable, field=field, what=what, problem="is not set in the server's environment")
    if len(value) < redaction.MIN_CHARACTERS:
        problem = (
            f"holds {len(value)} characters: a secret has at least {redaction.MIN_CHARACTERS}, a shorter one can't be "
            "kept out of logs and errors"
        )
        raise _bad_variable(port, variable, field=field, what=what, problem=problem)
    return value


def _bad_variable(port: str, variable: str, *, field: str, what: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{field}: the environment variable {variable}, {what} of the port {port}, {problem}",
        reason="MANIFEST_INVALID",
        metadata={"field": field, "port": port, "variable": variable},
    )
