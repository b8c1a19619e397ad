"""What the two services of one engine process share: threads, checkpoints, sessions and loaded models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from crucible_adapters.operations import Limits, OrderedOperations, UnorderedOperations
from crucible_adapters.sessions import Release, SessionRecord, SessionTable
from crucible_adapters.torch_engine.checkpoint_store import CheckpointStore
from crucible_adapters.torch_engine.compute import Compute
from crucible_adapters.torch_engine.lora_files import load_adapter
from crucible_adapters.torch_engine.lora_spec import LoraSpec
from crucible_adapters.torch_engine.models import (
    LoadedModel,
    adapter_dtype,
    check_model_folder,
    load_model,
    pick_device,
    pick_dtype,
)
from crucible_adapters.torch_engine.operations import Work
from crucible_adapters.torch_engine.parking import Parking
from crucible_adapters.torch_engine.runtime import configure_torch, default_threads
from crucible_adapters.torch_engine.session import DEFAULT_MICRO_BATCH_TOKENS, TrainingSession
from crucible_adapters.torch_engine.shared_models import SharedModels
from crucible_kit.errors import KitchenError, field_error

logger = logging.getLogger(__name__)

FULL, LORA, SAMPLING = "full", "lora", "sampling"
"""The kinds of sessions, limited apart."""
_LEASE_CHECK_SECONDS = 15.0

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How one engine process runs. spec.TorchEngineOptions describes what is not described here."""

    work_dir: Path
    """Its checkpoints are under it."""
    device: str = "auto"
    dtype: str = "auto"
    """For sessions that ask for `auto`, and for sampling from base models and checkpoints."""
    threads: int | None = None
    """torch's intra-op threads; None is one per core this process may use."""
    micro_batch_tokens: int = DEFAULT_MICRO_BATCH_TOKENS
    max_full_sessions: int = 8
    max_lora_sessions: int = 256
    max_sampling_sessions: int = 256
    max_lora_rank: int = 256
    max_operations_in_flight: int = 64
    max_tokens_in_flight: int = 4 * 1024 * 1024
    lease_seconds: float = 1800.0
    park_after_seconds: float = 300.0
    """Idle training sessions' tensors go to disk after it; 0 keeps them in memory."""


@dataclass(kw_only=True, eq=False)
class TrainingRecord(SessionRecord):
    """An open training session."""

    operations: OrderedOperations[Work]
    session: TrainingSession
    base_model: str
    """As the caller named it."""
    parking: Parking
    trainable_parameters: int

    def resident(self, work: Callable[..., Value]) -> Callable[..., Value]:
        """`work`, which computes with the session, after its tensors were brought back from where they are parked."""

        def run(*arguments: Any) -> Value:
            self.parking.bring_back(self.session)
            return work(*arguments)

        return run


@dataclass(kw_only=True, eq=False)
class SamplingRecord(SessionRecord):
    """An open sampling session on a model of its own or on a training session's live weights."""

    operations: UnorderedOperations[Work]
    model: LoadedModel
    followed: TrainingRecord | None = None

    def resident(self, work: Callable[..., Value]) -> Callable[..., Value]:
        """`work`, with the followed session's tensors in memory."""
        return work if self.followed is None else self.followed.resident(work)

    def weights_version(self) -> int:
        """Version of the weights, read on the compute thread; 0 for weights that never change."""
        return 0 if self.followed is None else self.followed.session.weights_version


class Engine:
    """One compute thread for a device, a small pool for files and parsing, and the sessions."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.device = pick_device(options.device)
        self.store = CheckpointStore(options.work_dir / "checkpoints")
        self.training = SessionTable[TrainingRecord](
            limits={FULL: options.max_full_sessions, LORA: options.max_lora_sessions},
            lease_seconds=options.lease_seconds,
        )
        self.sampling = SessionTable[SamplingRecord](
            limits={SAMPLING: options.max_sampling_sessions}, lease_seconds=options.lease_seconds
        )
        self.in_flight = Limits(operations=options.max_operations_in_flight, tokens=options.max_tokens_in_flight)
        self.compute = Compute()
        self._configured = self.compute.submit(partial(configure_torch, options.threads or default_threads()))
        self._io = ThreadPoolExecutor(2, "io")
        self.parking = Parking(options.work_dir / "parked")
        self._shared = SharedModels(self.load)
        self._leases = asyncio.create_task(self._watch_leases())

    async def started(self) -> None:
        """Wait until the compute thread can be used. Raises what setting torch up has raised."""
        await asyncio.wrap_future(self._configured)

    async def on_compute(self, function: Callable[..., Value], *args: object) -> Value:
        """Run on the compute thread, in the turn of what belongs to no session."""
        return await asyncio.wrap_future(self.compute.submit(lambda: function(*args)))

    async def on_io(self, function: Callable[..., Value], *args: object) -> Value:
        """Run off the event loop, beside the compute thread."""
        return await asyncio.get_running_loop().run_in_executor(self._io, function, *args)

    async def load(self, folder: Path, dtype: str = "") -> LoadedModel:
        """A model of the caller's own."""
        dtype = self._dtype(dtype)
        # before it takes a turn
        await self.on_io(check_model_folder, folder)
        return await self.on_compute(lambda: load_model(folder, device=str(self.device), dtype=dtype))

    async def open_base(self, folder: Path, dtype: str = "") -> tuple[LoadedModel, Release]:
        """A frozen model, loaded once however many sessions compute with it, and what gives it back."""
        model, give_back = await self._acquire(folder, dtype)

        async def release() -> None:
            give_back()

        return model, release

    async def open_lora(self, folder: Path, dtype: str, spec: LoraSpec, seed: int) -> tuple[LoadedModel, Release]:
        """A frozen model computing with a fresh adapter that is to be trained."""

        def adapted(base: LoadedModel) -> LoadedModel:
            adapter = base.slots.create(spec, adapter_dtype(base.dtype), seed=seed)
            return replace(base, adapter=adapter)

        return await self._open_adapted(folder, dtype, adapted)

    async def open_adapter(
        self, base_folder: Path, adapter_folder: Path, dtype: str = ""
    ) -> tuple[LoadedModel, Release]:
        """A frozen model computing with a stored adapter."""
        return await self._open_adapted(base_folder, dtype, lambda base: load_adapter(base, adapter_folder))

    async def _open_adapted(
        self, folder: Path, dtype: str, adapted: Callable[[LoadedModel], LoadedModel]
    ) -> tuple[LoadedModel, Release]:
        base, give_back = await self._acquire(folder, dtype)
        try:
            model = await self.on_compute(adapted, base)
        except BaseException as error:
            give_back()
            # grpc keeps the error that its last failed call ended with, whose frames would keep the model
            if isinstance(error, KitchenError):
                error.__traceback__ = error.__context__ = error.__cause__ = None
            raise

        async def release() -> None:
            if model.adapter is not None:
                # slots belong to the compute thread
                await self.on_compute(model.slots.forget, model.adapter)
            give_back()

        return model, release

    async def _acquire(self, folder: Path, dtype: str) -> tuple[LoadedModel, Callable[[], None]]:
        config = await self.on_io(check_model_folder, folder)
        name = str(pick_dtype(self._dtype(dtype), self.device, config)).removeprefix("torch.")
        return await self._shared.acquire(folder, name)

    def _dtype(self, asked: str) -> str:
        return asked if asked not in ("", "auto") else self.options.dtype

    async def close(self) -> None:
        """End all sessions and threads; running work is waited for."""
        self._leases.cancel()
        await asyncio.gather(self._leases, return_exceptions=True)
        await self.sampling.close_all(cancel=True)
        await self.training.close_all(cancel=True)
        await self._shared.close()
        await self.on_io(self.compute.close)
        self._io.shutdown()

    async def _watch_leases(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_CHECK_SECONDS)
            try:
                await self.on_io(self.store.delete_expired)
                await self.sampling.close_expired()
                await self.training.close_expired()
                await self.park_idle()
            # a full disk or a device that failed must not end all later rounds
            except Exception:
                logger.exception("leases and expired checkpoints were not all looked after, the next round is soon")

    async def park_idle(self) -> None:
        """Write to disk the tensors of training sessions that nobody named for `park_after_seconds`."""
        if not self.options.park_after_seconds:
            return
        for record in self.training.idle(self.options.park_after_seconds):
            try:
                await self.on_compute(self._park, record)
            except OSError as error:
                logger.warning("session %s stays in memory: %s", record.session_id, error)

    def _park(self, record: TrainingRecord) -> None:
        # closed meanwhile: its file would stay for ever
        if not record.operations.closed:
            self.parking.park(record.session)


def model_folder(base_model: str) -> Path:
    """The folder a request names. Raises INVALID_ARGUMENT when it is not absolute."""
    folder = Path(base_model)
    if not folder.is_absolute():
        raise field_error("base_model", f"{base_model!r} is not absolute: give the model folder's full path")
    try:
        resolved = folder.resolve()
        resolved.exists()
    # pathlib raises RuntimeError for a link to itself and ValueError for a zero byte
    except (OSError, RuntimeError, ValueError) as error:
        raise field_error("base_model", f"{base_model[:256]!r} can't be looked at: {type(error).__name__}") from error
    return resolved
