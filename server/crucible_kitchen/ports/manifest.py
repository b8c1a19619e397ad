"""The manifest: which adapter serves each port."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from crucible_kit.errors import InvalidArgumentError
from crucible_kit.ports import PORTS
from crucible_kit.settings import parse_settings, unknown_key

_KINDS = ("builtin", "python", "grpc")


class PortMapping(BaseModel):
    """One port's adapter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapter: str = Field(
        description="builtin:NAME, python:package.module:Class, or grpc:ADDRESS (host:port, or unix:PATH)."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="The adapter's own settings.")
    wait_seconds: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="How long a call waits for a grpc: adapter that is away; a run then waits, PAUSED, until it is "
        "back.",
    )

    @field_validator("adapter")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        kind, _, rest = value.partition(":")
        if kind not in _KINDS or not rest:
            raise ValueError(f"must be builtin:NAME, python:package.module:Class or grpc:ADDRESS, not {value!r}")
        return value

    @property
    def kind(self) -> str:
        """builtin, python or grpc."""
        return self.adapter.partition(":")[0]

    @property
    def target(self) -> str:
        """What follows the kind."""
        return self.adapter.partition(":")[2]


class Manifest(BaseModel):
    """All ports' adapters. Ports that are not named keep their default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: Literal["auto", "local", "hub", "test"] = Field(
        default="auto",
        description="What serves the ports hub and dataset by default. auto: the Hugging Face hub when its libraries "
        "are installed (the extra hf), otherwise this machine alone. local: this machine alone. hub: the hub, refused "
        "without its libraries. test: as local, and adapters named fake_... are allowed.",
    )
    ports: dict[str, PortMapping] = Field(default_factory=dict, description="Adapter by port name.")

    @field_validator("ports", mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("must map port names to adapters")
        for port in value:
            if port not in PORTS:
                raise ValueError(f"port {port!r}: {unknown_key(str(port), PORTS)}")
        return {port: {"adapter": each} if isinstance(each, str) else each for port, each in value.items()}


_HUB_PORTS = ("dataset", "hub")
_HUB_PACKAGES = ("datasets", "huggingface_hub")
_DEFAULT_PORTS = {
    "blob": "builtin:local",
    "dataset": "builtin:local",
    "hub": "builtin:local",
    "metrics": "builtin:sqlite",
    "registry": "builtin:sqlite",
    "sampling": "builtin:torch",
    "tokenizer": "builtin:tokenizers",
    "training": "builtin:torch",
}


def load_manifest(path: Path | None) -> dict[str, PortMapping]:
    """Adapter by port, the defaults filled in.

    Raises:
        InvalidArgumentError: MANIFEST_INVALID with the bad keys; a fake outside the profile test; the profile hub
            without its libraries.
    """
    manifest = (
        Manifest()
        if path is None
        else parse_settings(Manifest, _read_yaml(path), where="manifest", reason="MANIFEST_INVALID")
    )
    mappings = {port: PortMapping(adapter=adapter) for port, adapter in default_ports(manifest.profile).items()}
    mappings |= manifest.ports
    for port, mapping in mappings.items():
        if "fake_" in mapping.target and manifest.profile != "test":
            raise InvalidArgumentError(
                f"manifest.ports.{port}: {mapping.adapter} is a fake, which only the profile test may name; "
                f"this manifest's profile is {manifest.profile}",
                reason="MANIFEST_INVALID",
                metadata={"port": port, "adapter": mapping.adapter},
            )
    return mappings


def default_ports(profile: str) -> dict[str, str]:
    """Adapter by port where a manifest names none. Looks for the hub's libraries and loads none of them.

    Raises:
        InvalidArgumentError: MANIFEST_INVALID when the profile hub lacks them.
    """
    missing = [name for name in _HUB_PACKAGES if not _installed(name)]
    if profile == "hub" and missing:
        raise InvalidArgumentError(
            f"manifest.profile is hub, but {' and '.join(missing)} can't be imported: pip install "
            "'crucible-kitchen[hf]', or leave profile out",
            reason="MANIFEST_INVALID",
            metadata={"packages": " ".join(missing)},
        )
    if profile == "hub" or (profile == "auto" and not missing):
        return {**_DEFAULT_PORTS, **dict.fromkeys(_HUB_PORTS, "builtin:huggingface")}
    return dict(_DEFAULT_PORTS)


def _installed(package: str) -> bool:
    spec = find_spec(package)
    # Any folder of that name is found too, without an origin.
    return spec is not None and spec.origin is not None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidArgumentError(
            f"manifest {path} can't be read: {error}", reason="MANIFEST_INVALID", metadata={"path": path}
        ) from error
    if not isinstance(value, dict):
        raise InvalidArgumentError(
            f"manifest {path} must be a mapping with the keys profile and ports",
            reason="MANIFEST_INVALID",
            metadata={"path": path},
        )
    return value
