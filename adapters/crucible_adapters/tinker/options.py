"""Settings of the adapters of Tinker."""

from __future__ import annotations

from pydantic import Field, field_validator

from crucible_adapters.retries import RetryPolicy
from crucible_kit.adapter import AdapterOptions


class TinkerModel(AdapterOptions):
    """A base model as Tinker has it, and what Tinker does not tell of it."""

    name: str = Field(
        default="", max_length=255, description="Its name at Tinker; empty: the name that requests use for it."
    )
    folder: str = Field(
        default="",
        max_length=3839,
        description="Folder with the model's config.json, in transformers' format: vocab_size, max_sequence_tokens and "
        "the matrices that are adapted are read from it; empty: they are unknown.",
    )
    vocab_size: int | None = Field(
        default=None, ge=2, le=2**31 - 1, description="Size of the vocabulary; none: the folder's, otherwise unknown."
    )
    max_sequence_tokens: int | None = Field(
        default=None,
        ge=2,
        le=2**31 - 1,
        description="Longest sequence in tokens; none: what Tinker tells, then the folder's, otherwise unknown.",
    )


class TinkerOptions(AdapterOptions):
    """Where, as whom, with which models, and how long. Training and sampling share what they hold when theirs are
    equal."""

    base_url: str = Field(
        default="",
        description="Address of the API; empty: the environment's TINKER_BASE_URL, otherwise the hosted one.",
    )
    project_id: str = Field(default="", max_length=255, description="Project of the sessions; empty: the default one.")
    user_metadata: dict[str, str] = Field(default_factory=dict, description="Kept with every session at Tinker.")
    models: dict[str, TinkerModel] = Field(
        default_factory=dict,
        description="Base models by the name that requests use. Others go to Tinker under that name.",
    )
    timeout_seconds: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="Longest wait for a connection, and for the next bytes of an answer; polls for results get 45 s at "
        "least.",
    )
    result_seconds: float = Field(
        default=3600.0, gt=0, le=86400, description="Longest wait for the result of one call, Tinker's queue included."
    )
    retries: RetryPolicy = Field(
        default_factory=RetryPolicy, description="When a request is sent again; the library's own retries are off."
    )
    telemetry: bool = Field(
        default=False, description="Let the library report errors and use to Tinker, their texts included."
    )
    kept_seconds: int | None = Field(
        default=None,
        ge=3600,
        le=10 * 365 * 86400,
        description="How long Tinker keeps the weights of a checkpoint whose file was copied elsewhere; none: forever.",
    )
    max_sessions: int = Field(default=64, ge=1, description="Most open sessions of each service.")
    max_operations_in_flight: int = Field(default=64, ge=1, description="Most unfinished operations of a session.")
    max_tokens_in_flight: int = Field(default=4 * 1024 * 1024, ge=1, description="Most tokens in them.")
    lease_seconds: int = Field(default=1800, ge=1, description="An idle session is closed after so long.")
    hold_seconds: float = Field(default=10.0, ge=0, description="How long a call that came early waits for its turn.")

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must start with https:// or http://")
        if "?" in value or "#" in value:
            raise ValueError("must end with the path: a query or a fragment would be lost")
        return value.rstrip("/")

    def model(self, name: str) -> TinkerModel:
        """The entry of a base model by the name that requests use, or by its name at Tinker, which is filled in."""
        by_name = {each.name: each for each in self.models.values() if each.name}
        entry = self.models.get(name) or by_name.get(name) or TinkerModel()
        return entry if entry.name else entry.model_copy(update={"name": name})
