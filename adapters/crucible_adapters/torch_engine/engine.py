"""What the two services of one engine process share: threads, checkpoints, sessions and loaded models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from crucible_adapters.torch_engine.checkpoint_store import CheckpointStore
from crucible_adapters.torch_engine.models import LoadedModel, load_model, pick_device
from crucible_adapters.torch_engine.operations import OrderedOperations, UnorderedOperations
from crucible_adapters.torch_engine.runtime import configure_torch, default_threads
from crucible_adapters.torch_engine.session import DEFAULT_MICRO_BATCH_TOKENS, TrainingSession
from crucible_adapters.torch_engine.session_table import SessionRecord, SessionTable
from crucible_kit.errors import field_error

MAX_TRAINING_SESSIONS = 8
MAX_SAMPLING_SESSIONS = 64
LEASE_SECONDS = 1800.0
_LEASE_CHECK_SECONDS = 15.0

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How one engine process runs."""

    work_dir: Path
    """Its checkpoints are under it."""
    device: str = "auto"
    dtype: str = "auto"
    """For sessions that ask for `auto`, and for sampling from base models and checkpoints."""
    threads: int | None = None
    """torch's intra-op threads; None is one per core this process may use."""
    micro_batch_tokens: int = DEFAULT_MICRO_BATCH_TOKENS


@dataclass(kw_only=True, eq=False)
class TrainingRecord(SessionRecord):
    """An open training session."""

    operations: OrderedOperations
    session: TrainingSession
    base_model: str
    """As the caller named it."""


@dataclass(kw_only=True, eq=False)
class SamplingRecord(SessionRecord):
    """An open sampling session on a model of its own or on a training session's live weights."""

    operations: UnorderedOperations
    model: LoadedModel
    followed: TrainingRecord | None = None
    release: Callable[[], None] = lambda: None

    def weights_version(self) -> int:
        """Version of the weights, read on the compute thread; 0 for weights that never change."""
        return 0 if self.followed is None else self.followed.session.weights_version

    async def close(self) -> None:
        await super().close()
        self.release()


class Engine:
    """One compute thread for a device, a small pool for files and parsing, and the sessions."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.device = pick_device(options.device)
        self.store = CheckpointStore(options.work_dir / "checkpoints")
        self.training = SessionTable[TrainingRecord](limit=MAX_TRAINING_SESSIONS, lease_seconds=LEASE_SECONDS)
        self.sampling = SessionTable[SamplingRecord](limit=MAX_SAMPLING_SESSIONS, lease_seconds=LEASE_SECONDS)
        threads = options.threads or default_threads()
        self.compute = ThreadPoolExecutor(1, "compute", initializer=configure_torch, initargs=(threads,))
        self._io = ThreadPoolExecutor(2, "io")
        self._shared: dict[Path, tuple[LoadedModel, int]] = {}
        self._leases = asyncio.create_task(self._watch_leases())

    async def on_compute(self, function: Callable[..., Value], *args: object) -> Value:
        """Run on the compute thread, after what is queued there."""
        return await asyncio.get_running_loop().run_in_executor(self.compute, function, *args)

    async def on_io(self, function: Callable[..., Value], *args: object) -> Value:
        """Run off the event loop, beside the compute thread."""
        return await asyncio.get_running_loop().run_in_executor(self._io, function, *args)

    async def load(self, folder: Path, dtype: str = "") -> LoadedModel:
        """A model of the caller's own."""
        dtype = dtype if dtype not in ("", "auto") else self.options.dtype
        return await self.on_compute(lambda: load_model(folder, device=str(self.device), dtype=dtype))

    async def load_shared(self, folder: Path) -> LoadedModel:
        """A model that is only read, loaded once however many sessions sample from it; pair with `release_shared`."""
        if folder not in self._shared:
            model = await self.load(folder)
            # a second session may have loaded it meanwhile
            self._shared.setdefault(folder, (model, 0))
        model, users = self._shared[folder]
        self._shared[folder] = (model, users + 1)
        return model

    def release_shared(self, folder: Path) -> None:
        """One user less; the last one frees the model."""
        model, users = self._shared.pop(folder)
        if users > 1:
            self._shared[folder] = (model, users - 1)

    async def close(self) -> None:
        """End all sessions and threads; running work is waited for."""
        self._leases.cancel()
        await asyncio.gather(self._leases, return_exceptions=True)
        await self.sampling.close_all()
        await self.training.close_all()
        self.compute.shutdown(cancel_futures=True)
        self._io.shutdown()

    async def _watch_leases(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_CHECK_SECONDS)
            await self.sampling.close_expired()
            await self.training.close_expired()


def model_folder(base_model: str) -> Path:
    """The folder a request names. Raises INVALID_ARGUMENT when it is not absolute."""
    folder = Path(base_model)
    if not folder.is_absolute():
        raise field_error("base_model", f"{base_model!r} is not absolute: give the model folder's full path")
    return folder.resolve()
