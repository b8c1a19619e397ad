"""Settings that every provider's adapter has."""

from __future__ import annotations

from pydantic import Field, field_validator

from crucible_adapters.retries import RetryPolicy
from crucible_kit.adapter import AdapterOptions


class ModelPrice(AdapterOptions):
    """USD per million tokens of one model, at list price."""

    input: float = Field(ge=0, description="Tokens read.")
    output: float = Field(ge=0, description="Tokens written, those of thinking among them.")
    cached_input: float | None = Field(default=None, ge=0, description="Tokens read from a cache; none: as input.")
    cache_write_input: float | None = Field(
        default=None, ge=0, description="Tokens written to a cache; none: as input."
    )


class ChatOptions(AdapterOptions):
    """Which model, where, how long and at what price."""

    model: str = Field(
        default="", max_length=255, description="Model of requests that name none; empty: they are refused."
    )
    base_url: str = Field(default="", description="Address of the API; empty: the provider's own.")
    timeout_seconds: float = Field(
        default=600.0, gt=0, le=3600, description="Longest wait for a connection, and for the next bytes of an answer."
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens of a reply whose request sets none; none: the provider's default.",
    )
    prices: dict[str, ModelPrice] = Field(
        default_factory=dict, description="USD per million tokens by model; a reply of another model has no cost."
    )
    retries: RetryPolicy = Field(
        default_factory=RetryPolicy, description="When a request is sent again; the library's own retries are off."
    )

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must start with https:// or http://")
        if "?" in value or "#" in value:
            raise ValueError("must end with the path: a query or a fragment would be lost")
        return value.rstrip("/")
