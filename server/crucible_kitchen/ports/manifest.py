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
from crucible_kitchen.ports.installed import find_adapter
from crucible_kitchen.ports.mapping import PortMapping

__all__ = [
    "Manifest",
    "PortMapping",
    "base_mappings",
    "check_fake",
    "default_ports",
    "load_manifest",
    "read_manifest",
    "read_mappings",
]


class Manifest(BaseModel):
    """All ports' adapters. Ports that are not named keep their default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: Literal["auto", "local", "hub", "tinker", "test"] = Field(
        default="auto",
        description="What serves ports that are not named. auto: hub and dataset are the Hugging Face hub when its "
        "libraries are installed (the extra hf), otherwise this machine alone. local: this machine alone. hub: the "
        "hub, refused without its libraries. tinker: as auto, with training and sampling by builtin:tinker and its key "
        "in TINKER_API_KEY, refused when that adapter is not installed. test: as local, and adapters named fake_... "
        "are allowed.",
    )
    ports: dict[str, PortMapping] = Field(
        default_factory=dict, description="Adapter by port name. Ports that are not named keep the profile's."
    )

    @field_validator("ports", mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("must map port names to adapters")
        for port in value:
            if port not in PORTS:
                raise ValueError(f"port {port!r}: {unknown_key(str(port), PORTS)}")
        return {port: {"adapter": each} if isinstance(each, str) else each for port, each in value.items()}


_ENGINE_PORTS = ("sampling", "training")
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

_DEFAULT_SECRETS = {"builtin:tinker": {"api_key": "TINKER_API_KEY"}}
"""Of adapters that a profile maps."""


def load_manifest(path: Path | None) -> dict[str, PortMapping]:
    """Adapter by port, the profile's defaults filled in.

    Raises:
        InvalidArgumentError: MANIFEST_INVALID with the bad keys; a fake outside the profile test; the profile hub
            without its libraries, or tinker without its adapter.
    """
    return base_mappings(read_manifest(path))


def read_manifest(path: Path | None) -> Manifest:
    """The manifest of a file; None: an empty one. Raises MANIFEST_INVALID with the bad keys."""
    if path is None:
        return Manifest()
    manifest = parse_settings(Manifest, _read_yaml(path), where="manifest", reason="MANIFEST_INVALID")
    return manifest.model_copy(update={"ports": _located(manifest.ports, path.absolute().parent)})


def read_mappings(path: Path) -> dict[str, PortMapping]:
    """The mappings of a file that has ports alone. Raises MANIFEST_INVALID naming the file and the bad keys."""
    return parse_settings(Manifest, _read_yaml(path), where=path.name, reason="MANIFEST_INVALID").ports


def _located(ports: dict[str, PortMapping], folder: Path) -> dict[str, PortMapping]:
    return {
        port: each if each.tls is None else each.model_copy(update={"tls": each.tls.below(folder)})
        for port, each in ports.items()
    }


def base_mappings(manifest: Manifest) -> dict[str, PortMapping]:
    """Adapter by port, the profile's defaults filled in. Raises what load_manifest raises."""
    defaults = {
        port: PortMapping(adapter=each, secrets=_DEFAULT_SECRETS.get(each, {}))
        for port, each in default_ports(manifest.profile).items()
    }
    mappings = {**defaults, **manifest.ports}
    for port, mapping in mappings.items():
        check_fake(port, mapping, manifest.profile, where=f"manifest.ports.{port}")
    missing = [port for port in _ENGINE_PORTS if port not in manifest.ports and not find_adapter(port, "tinker")]
    if manifest.profile == "tinker" and missing:
        names = " and ".join(missing)
        raise InvalidArgumentError(
            f"manifest.profile is tinker, but the adapter builtin:tinker is not installed: no installed package has it "
            f"for {names}. Install one, map {names} to another adapter in manifest.ports, or choose another profile",
            reason="MANIFEST_INVALID",
            metadata={"field": "manifest.profile", "adapter": "builtin:tinker", "ports": " ".join(missing)},
        )
    return mappings


def check_fake(port: str, mapping: PortMapping, profile: str, *, where: str) -> None:
    """Raises MANIFEST_INVALID for a fake outside the profile test."""
    if mapping.is_fake and profile != "test":
        raise InvalidArgumentError(
            f"{where}: {mapping.adapter} is a fake, which only the profile test may name; this manifest's profile is "
            f"{profile}",
            reason="MANIFEST_INVALID",
            metadata={"field": where, "port": port, "adapter": mapping.adapter},
        )


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
    ports = dict(_DEFAULT_PORTS)
    if profile == "hub" or (profile in ("auto", "tinker") and not missing):
        ports |= dict.fromkeys(_HUB_PORTS, "builtin:huggingface")
    if profile == "tinker":
        ports |= dict.fromkeys(_ENGINE_PORTS, "builtin:tinker")
    return ports


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
