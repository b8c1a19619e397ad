"""The server's options: one typed model behind `kitchen serve`, its help and its configuration errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from crucible_kit.addresses import check_address, is_local

# The server may change its working directory's meaning for nobody: paths are fixed when they are read.
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class ServerOptions(BaseModel):
    """How a server listens, where it keeps its data, and what it allows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = Field(
        default="127.0.0.1:50051", description="Address to listen on: host:port (port 0 takes a free one) or unix:PATH."
    )
    data: AbsolutePath = Field(description="Data folder: run store, checkpoints, logs. One server at a time.")
    manifest: AbsolutePath | None = Field(
        default=None, description="YAML file that maps ports to adapters. Absent: the default adapters."
    )
    max_concurrent_runs: int = Field(default=1, ge=1, le=64, description="Runs at work at the same time.")
    max_queued_runs: int = Field(default=1000, ge=1, description="Runs that may wait for their turn; more are refused.")
    max_watchers_per_run: int = Field(default=64, ge=1, description="Watches of one run at the same time.")
    max_client_training_sessions: int = Field(
        default=64, ge=0, description="Training sessions that one client of the ports may have open."
    )
    max_client_sampling_sessions: int = Field(
        default=64, ge=0, description="Sampling sessions that one client of the ports may have open."
    )
    max_client_datasets: int = Field(
        default=16, ge=0, description="Datasets that one client of the ports may have open."
    )
    max_client_python_sessions: int = Field(
        default=16,
        ge=0,
        description="Python sessions that one client of the ports may have open; one more closes the one that has been "
        "idle for longest, if that is more than a minute.",
    )
    max_client_episodes: int = Field(
        default=1024, ge=0, description="Episodes of environments that one client of the ports may have open."
    )
    max_client_tokens_in_flight: int = Field(
        default=1024 * 1024,
        ge=0,
        description="Tokens of the calls that one client of the ports has sent and not awaited yet, samples at their "
        "longest.",
    )
    max_sessions_of_clients: int = Field(
        default=192,
        ge=0,
        description="Training, sampling and Python sessions and datasets, each, of all clients of the ports together: "
        "fewer than the adapter takes, so that runs find room.",
    )
    max_episodes_of_clients: int = Field(
        default=4096, ge=0, description="Episodes of environments of all clients of the ports together."
    )
    max_full_sessions_of_clients: int = Field(
        default=4,
        ge=0,
        description="Of those, training sessions without a LoRA adapter: each holds a whole model of its own.",
    )
    tokens: AbsolutePath | None = Field(
        default=None,
        description="File of bearer tokens, one `role: token` a line; roles read, run, admin. Absent: none is needed.",
    )
    insecure: bool = Field(
        default=False, description="Listen beyond this machine without TLS or without knowing callers."
    )
    tls_cert: AbsolutePath | None = Field(
        default=None, description="The server's certificate chain, PEM. With tls_key."
    )
    tls_key: AbsolutePath | None = Field(default=None, description="The private key of tls_cert, PEM.")
    tls_client_ca: AbsolutePath | None = Field(
        default=None,
        description="Certificates of the authorities, PEM, one of which must have signed a client's. With tls_cert.",
    )
    read_roots: tuple[AbsolutePath, ...] | None = Field(
        default=None,
        description="The only folders that requests may name files in. Absent: on loopback and unix sockets any, "
        "beyond them none.",
    )
    max_adapter_wait_seconds: float = Field(
        default=0.0,
        ge=0,
        description="How long a run waits, PAUSED, for an adapter that is away, before it has FAILED; 0: for ever.",
    )
    drain_seconds: float = Field(
        default=20.0, ge=0, le=3600, description="How long a stopping server waits for its runs to save a checkpoint."
    )
    attach_heartbeat_seconds: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="How often an adapter that dials out is asked for a sign of life; after three without one it is "
        "detached.",
    )
    recover: bool = Field(
        default=True, description="Go on with the runs that the last server of this folder left behind."
    )

    @field_validator("listen")
    @classmethod
    def _address(cls, value: str) -> str:
        if value.startswith("dns:"):
            raise ValueError("must be host:port or unix:PATH, such as 127.0.0.1:50051")
        check_address(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ServerOptions:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        if self.is_local or self.insecure:
            return self
        if self.tls_cert is None:
            raise ValueError(
                f"listen {self.listen} is reachable from other machines: give tls_cert and tls_key, or insecure to "
                "send everything in the clear, or listen on 127.0.0.1"
            )
        if self.tokens is None and self.tls_client_ca is None:
            raise ValueError(
                f"listen {self.listen} is reachable from other machines: give tokens or tls_client_ca so that callers "
                "are known, or insecure to let anybody in"
            )
        return self

    @property
    def knows_callers(self) -> bool:
        """Whether callers have shown who they are, or can only be the server's user."""
        return self.listen.startswith("unix:") or self.tokens is not None or self.tls_client_ca is not None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_local(self.listen)

    @property
    def allowed_roots(self) -> tuple[Path, ...] | None:
        """The only folders that requests may name paths in, resolved; None: any path."""
        if self.read_roots is None:
            return None if self.is_local else ()
        return tuple(root.resolve() for root in self.read_roots)
