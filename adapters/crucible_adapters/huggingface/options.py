"""Settings of the hub's adapters, and the environment in which its libraries run. Loads none of them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from pydantic import Field, field_validator

from crucible_kit.adapter import AdapterContext, AdapterOptions
from crucible_kit.errors import FailedPreconditionError

DEFAULT_ENDPOINT = "https://huggingface.co"
# A chosen cache folder must not be split by what the environment says of its parts.
_CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE")
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class HuggingFaceOptions(AdapterOptions):
    """Which hub, as whom, and where its files go."""

    endpoint: str = Field(default="", description=f"The hub's address; default: HF_ENDPOINT, or {DEFAULT_ENDPOINT}.")
    token_variable: str = Field(
        default="HF_TOKEN",
        pattern=r"[A-Za-z_][A-Za-z0-9_]*",
        description="Environment variable that holds the access token. A token saved by `hf auth login` is not used.",
    )
    cache_dir: Path | None = Field(
        default=None,
        description="Folder of downloads, as HF_HOME; default: the library's own, or huggingface in the data folder "
        "when the server reads only from allowed folders.",
    )
    timeout_seconds: int = Field(
        default=10, ge=1, le=600, description="Longest wait for a connection, and between two pieces of an answer."
    )

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError(f"must start with https:// or http://, not {value!r}")
        return value.rstrip("/")

    def address(self) -> str:
        """The hub's address, without a slash at the end."""
        return self.endpoint or os.environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_ENDPOINT


def library_environment(options: HuggingFaceOptions, context: AdapterContext) -> dict[str, str]:
    """The environment of a process that uses the libraries: they read it once, when they are loaded."""
    environment = dict(os.environ)
    for name in _TOKEN_VARIABLES:
        environment.pop(name, None)
    token = os.environ.get(options.token_variable, "").strip()
    if token:
        environment["HF_TOKEN"] = token
    cache = options.cache_dir
    if cache is None and context.read_roots is not None:
        # The other adapters may read what lies in the data folder, whatever the allowed folders are.
        cache = context.data_dir / "huggingface"
    if cache is not None:
        for name in _CACHE_VARIABLES:
            environment.pop(name, None)
        environment["HF_HOME"] = str(cache.expanduser().absolute())
    return environment | {
        "HF_ENDPOINT": options.address(),
        "HF_TOKEN_PATH": os.devnull,
        "HF_HUB_DOWNLOAD_TIMEOUT": str(options.timeout_seconds),
        "HF_HUB_ETAG_TIMEOUT": str(options.timeout_seconds),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        # datasets loads those that it finds, for nothing that is needed here.
        "USE_TORCH": "0",
        "USE_TF": "0",
        "USE_JAX": "0",
    }


def require(*packages: str) -> None:
    """Raises FAILED_PRECONDITION PACKAGE_MISSING when one of these packages is not installed."""
    # A mere folder of that name has no origin.
    missing = [name for name in packages if (spec := find_spec(name)) is None or spec.origin is None]
    if missing:
        raise FailedPreconditionError(
            f"builtin:huggingface needs {' and '.join(missing)}: pip install 'crucible-kitchen[hf]', or map the port "
            "to builtin:local",
            reason="PACKAGE_MISSING",
            metadata={"packages": " ".join(missing)},
        )
