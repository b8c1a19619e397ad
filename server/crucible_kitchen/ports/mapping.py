"""One port's adapter as manifests, AddAdapter and the data folder's adapters.yaml write it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from crucible_kit.addresses import check_address, is_local
from crucible_kit.settings import hidden_value_error

_SHARED_KEYS = ("options", "secrets")
_KEYS_OF_KIND = {
    "builtin": _SHARED_KEYS,
    "python": _SHARED_KEYS,
    "exec": (*_SHARED_KEYS, "command", "wait_seconds"),
    "grpc": (*_SHARED_KEYS, "tls", "token_env", "wait_seconds", "insecure"),
    "attach": (*_SHARED_KEYS, "token_env", "wait_seconds"),
}
REMOTE_KINDS = ("exec", "grpc", "attach")
"""Kinds whose adapters are other processes, reached by messages: they get options and secrets by Configure."""
FORMS = (
    "builtin:NAME, python:package.module:Class, exec:COMMAND LINE, grpc:ADDRESS (host:port, dns:///host:port or "
    "unix:PATH) or attach:NAME"
)
_SECRET_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
# Capitals only: most secrets have small letters, and one that stands in the place of its variable must not be printed.
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,254}")
_ATTACHMENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_MAX_SECRETS = 64
# Beyond it a double, which is what numbers travel as, is not exact.
_MAX_INTEGER = 2**53


class TlsFiles(BaseModel):
    """Encryption of the connection to a grpc: adapter. An empty one takes the system's authorities."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca: Path | None = Field(
        default=None,
        description="PEM file of the authorities, one of which must have signed the adapter's certificate. Absent: the "
        "system's. A relative path counts from the manifest's folder, here and below.",
    )
    cert: Path | None = Field(
        default=None, description="PEM file of the server's own certificate, for adapters that ask for one. With key."
    )
    key: Path | None = Field(default=None, description="PEM file of cert's private key.")
    server_name: str = Field(
        default="",
        max_length=255,
        description="The name that the adapter's certificate has. Absent: the address's host.",
    )

    @model_validator(mode="after")
    def _pair(self) -> TlsFiles:
        if (self.cert is None) != (self.key is None):
            raise hidden_value_error("cert and key go together: give both or neither")
        return self

    def below(self, folder: Path) -> TlsFiles:
        """With relative paths counted from a folder."""
        paths = {name: getattr(self, name) for name in ("ca", "cert", "key")}
        return self.model_copy(
            update={name: folder / path.expanduser() for name, path in paths.items() if path is not None}
        )


class PortMapping(BaseModel):
    """One port's adapter. A text alone stands for `adapter`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapter: str = Field(
        max_length=4096,
        description="What serves the port: builtin:NAME, an installed adapter; python:package.module:Class, a class on "
        "the server's path; exec:COMMAND LINE, a program that the server starts; grpc:ADDRESS (host:port, "
        "dns:///host:port or unix:PATH), a server that runs by itself; attach:NAME, an adapter that calls this server.",
    )
    command: list[str] | None = Field(
        default=None,
        description="The program of an exec: adapter and its arguments as a list, in place of a command line in "
        "adapter.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="The adapter's own settings, JSON values by name. exec:, grpc: and attach: adapters get them by "
        "Configure.",
    )
    secrets: dict[str, str] = Field(
        default_factory=dict,
        description="The adapter's secrets: name, such as api_key, to the environment variable of the server that "
        "holds the value, such as OPENAI_API_KEY. A value has at least 6 characters, and is kept out of logs, errors "
        "and events.",
    )
    tls: TlsFiles | None = Field(
        default=None,
        description="grpc: only. Encrypts the connection; {} with the system's authorities. Absent: plain text.",
    )
    token_env: str = Field(
        default="",
        description="Environment variable of the server that holds a bearer token: sent to a grpc: adapter with every "
        "call, or expected of an attach: adapter. Absent: none.",
    )
    wait_seconds: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="exec:, grpc:, attach: only. How long a call waits for an adapter that is away, if its deadline "
        "allows.",
    )
    insecure: bool = Field(
        default=False,
        description="grpc: only. Allows plain text to an address beyond this machine: what is sent, secrets too, can "
        "be read on the way.",
    )

    @model_validator(mode="before")
    @classmethod
    def _command_as_line(cls, data: Any) -> Any:
        """`command` becomes the command line of `adapter`, so that equal mappings are written alike."""
        if not isinstance(data, dict) or data.get("command") is None:
            return data
        command = data["command"]
        if data.get("adapter", "exec:") not in ("exec", "exec:"):
            raise hidden_value_error("command is for exec: adapters without a command line: leave one of the two out")
        if not isinstance(command, list | tuple) or not command or not all(isinstance(each, str) for each in command):
            raise hidden_value_error("command must be a list of texts: a program and its arguments")
        return {**data, "adapter": f"exec:{shlex.join(command)}", "command": None}

    @field_validator("adapter")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        kind, _, rest = value.partition(":")
        if kind not in _KEYS_OF_KIND or not rest.strip():
            raise ValueError(f"must be {FORMS}")
        if kind == "python" and not all(rest.partition(":")[::2]):
            raise ValueError("must be python:package.module:Class")
        if kind == "exec":
            try:
                if not shlex.split(rest):
                    raise ValueError("names no program")
            except ValueError as error:
                raise ValueError(f"is no command line ({error}): quote it, or give it as a list in command") from error
        if kind == "grpc":
            check_address(rest)
        if kind == "attach" and not _ATTACHMENT.fullmatch(rest):
            raise ValueError("attach: needs a name of at most 63 small letters, digits, '-', '_' or '.'")
        return value

    @field_validator("options")
    @classmethod
    def _json(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            # What comes back has no tuples and no keys other than texts: equal mappings are equal.
            return json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise hidden_value_error(
                f"must hold JSON values only ({error}): write dates and the like as texts"
            ) from error

    @field_validator("secrets", mode="before")
    @classmethod
    def _variables(cls, value: Any) -> Any:
        if not isinstance(value, dict) or len(value) > _MAX_SECRETS:
            raise hidden_value_error(f"must map at most {_MAX_SECRETS} secrets' names to environment variables")
        for name, variable in value.items():
            if not isinstance(name, str) or not _SECRET_NAME.fullmatch(name):
                raise hidden_value_error("a secret's name has small letters, digits and '_', such as api_key")
            if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
                raise hidden_value_error(
                    f"{name} must name an environment variable in capitals, such as OPENAI_API_KEY, not hold the value"
                )
        return value

    @field_validator("token_env", mode="before")
    @classmethod
    def _variable(cls, value: Any) -> Any:
        if value != "" and not (isinstance(value, str) and _VARIABLE.fullmatch(value)):
            raise hidden_value_error("must name an environment variable in capitals, such as ADAPTER_TOKEN")
        return value

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> PortMapping:
        given = {name for name in self.model_fields_set if getattr(self, name) != type(self).model_fields[name].default}
        idle = sorted(given - {"adapter", *_KEYS_OF_KIND[self.kind]})
        if self.kind in REMOTE_KINDS:
            _check_integers(self.options)
        if idle:
            raise hidden_value_error(f"{', '.join(idle)} means nothing for {self.kind}: adapters, leave it out")
        if self.tls is not None and self.insecure:
            raise hidden_value_error("tls encrypts, insecure allows plain text: leave one of the two out")
        if self.kind == "grpc" and self.tls is None and not self.insecure and not is_local(self.target):
            raise hidden_value_error(
                f"{self.target} may be another machine, and everything would be sent to it in plain text: give tls "
                "(tls: {} checks it with the system's authorities), or insecure: true to send it all the same"
            )
        return self

    @property
    def kind(self) -> str:
        """builtin, python, exec, grpc or attach."""
        return self.adapter.partition(":")[0]

    @property
    def target(self) -> str:
        """What follows the kind."""
        return self.adapter.partition(":")[2]

    @property
    def arguments(self) -> list[str]:
        """The program of an exec: adapter and its arguments."""
        return shlex.split(self.target)

    @property
    def is_fake(self) -> bool:
        """Whether it names an adapter that is for tests only."""
        return self.kind in ("builtin", "python") and "fake_" in self.target

    def written(self) -> dict[str, Any]:
        """As a manifest writes it: JSON values, without what is a default."""
        return self.model_dump(mode="json", exclude_defaults=True)


def _check_integers(value: Any) -> None:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_integers(each)
    elif isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise hidden_value_error(f"options: {value} has more digits than a number keeps on its way: write it as a text")
