"""Collections in Chroma: embedded, in the data folder, or on a Chroma server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, ParamSpec, TypeVar

from pydantic import Field

from crucible_adapters.retries import Clock, RetryPolicy, retried
from crucible_adapters.vector.chroma_store import ChromaStore
from crucible_adapters.vector.service import VectorStoreAdapter
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import FailedPreconditionError

P = ParamSpec("P")
T = TypeVar("T")
_SYSTEM_CLOCK = Clock()
_SERVER_THREADS = 8


class ChromaOptions(AdapterOptions):
    """Where Chroma is, and how it indexes collections that are made here."""

    host: str = Field(
        default="", max_length=253, description="Machine of a Chroma server; empty: embedded, in the data folder."
    )
    port: int = Field(default=8000, ge=1, le=65535, description="Port of the server.")
    ssl: bool = Field(default=False, description="Speak TLS to the server.")
    tenant: str = Field(default="default_tenant", min_length=1, description="Tenant of the collections.")
    database: str = Field(default="default_database", min_length=1, description="Database of the collections.")
    token_header: Literal["Authorization", "X-Chroma-Token"] = Field(
        default="Authorization",
        description="Header that carries the secret token; Authorization has `Bearer ` before it.",
    )
    timeout_seconds: float = Field(
        default=60.0, gt=0, le=3600, description="Longest wait for the server, and for the next bytes of an answer."
    )
    retries: RetryPolicy = Field(
        default_factory=RetryPolicy,
        description="When a request to the server is sent again; deletions are not. Embedded: without effect.",
    )
    ef_construction: int = Field(
        default=200, ge=1, le=10_000, description="Candidates looked at when an item is added to the HNSW graph."
    )
    ef_search: int = Field(
        default=400,
        ge=1,
        le=10_000,
        description="Candidates looked at by a query; more find more of the nearest items, and take longer.",
    )
    exact_vectors: bool = Field(
        default=True,
        description="In collections with the cosine metric, where Chroma rounds vectors, keep what is rounded away as "
        "metadata of the items. false: the last bits of vectors that are read may differ.",
    )
    max_neighbors: int = Field(default=32, ge=2, le=1024, description="Most edges of an item in the HNSW graph.")


class ChromaVectorStore(VectorStoreAdapter):
    """The VectorStore port over the package chromadb, which is loaded, in a thread, when the first call needs it.

    Args:
        clock: time and chance; tests give their own.
    """

    description = AdapterDescription(name="chroma", port="vector", options=ChromaOptions, secrets=("token",))

    def __init__(self, options: ChromaOptions, context: AdapterContext, *, clock: Clock = _SYSTEM_CLOCK) -> None:
        if find_spec("chromadb") is None:
            raise FailedPreconditionError(
                "builtin:chroma needs the Python package chromadb: pip install 'crucible-kitchen[chroma]'",
                reason="PACKAGE_MISSING",
                metadata={"package": "chromadb", "extra": "chroma"},
            )
        self._options = options
        self._clock = clock
        token = context.secrets.get("token", "")
        headers = {}
        if token:
            value = f"Bearer {token}" if options.token_header == "Authorization" else token
            headers[options.token_header] = value
        store = ChromaStore(
            folder=None if options.host else context.data_dir / "chroma",
            host=options.host,
            port=options.port,
            ssl=options.ssl,
            tenant=options.tenant,
            database=options.database,
            headers=headers,
            timeout=options.timeout_seconds,
            index={
                "ef_construction": options.ef_construction,
                "ef_search": options.ef_search,
                "max_neighbors": options.max_neighbors,
            },
            keeps_bits=options.exact_vectors,
            pending=context.data_dir / "chroma-upsert.pending",
            now=clock.wall,
        )
        # The embedded one does one thing at a time itself.
        super().__init__(store, threads=_SERVER_THREADS if options.host else 1)

    async def _run(self, context: Any, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        run = partial(super()._run, context, function, *args, **kwargs)
        # A deletion that is sent again would tell that nothing was there.
        if not self._options.host or function in (self._delete, self._drop):
            return await run()
        remaining = context.time_remaining()
        attempts = retried(run, self._options.retries, time_remaining=remaining, clock=self._clock)
        return await attempts
