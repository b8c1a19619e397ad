"""Models and tokenizers by the names that clients use: brought to this machine through the hub port."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from crucible_kit.errors import KitchenError, NotFoundError, field_error
from crucible_kitchen.ports.hub import MODEL_FILES, SNAPSHOT_SECONDS, TOKENIZER_FILES, snapshot_request
from crucible_kitchen.relay.call import Host, attach

LOCAL_MODEL = "training.local_model"
_KEPT_SECONDS = 300.0
_KEPT = 64


class Models:
    """Resolves names.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, host: Host, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._clock = clock
        # A network hub is asked about a tokenizer once in a while, not for every text.
        self._tokenizers: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def are_local(self, port: str) -> bool:
        """Whether the port's adapter takes models as folders of this machine."""
        return LOCAL_MODEL in await self._host.known_capabilities(port)

    async def model_folder(self, name: str, *, field: str) -> str:
        """The folder of a model: builtin:NAME, an absolute folder that may be read, or owner/name.

        Raises:
            NotFoundError: MODEL_NOT_FOUND.
            InvalidArgumentError: FIELD_INVALID, PATH_NOT_ALLOWED.
        """
        return await self._folder(name, MODEL_FILES, field=field, reason="MODEL_NOT_FOUND")

    async def tokenizer_folder(self, name: str) -> str:
        """The folder of a tokenizer, named like a model; an absolute one is the tokenizer adapter's to check."""
        if name.startswith("/"):
            return name
        now = self._clock()
        until, folder = self._tokenizers.get(name, (now, ""))
        if until <= now:
            folder = await self._folder(name, TOKENIZER_FILES, field="tokenizer", reason="TOKENIZER_NOT_FOUND")
            self._tokenizers[name] = now + _KEPT_SECONDS, folder
            self._tokenizers.move_to_end(name)
            while len(self._tokenizers) > _KEPT:
                self._tokenizers.popitem(last=False)
        return folder

    async def _folder(self, name: str, files: tuple[str, ...], *, field: str, reason: str) -> str:
        hub = (await attach(self._host, "hub")).stub
        try:
            return (await hub.SnapshotRepo(snapshot_request(name, files), timeout=SNAPSHOT_SECONDS)).local_path
        except KitchenError as error:
            if error.reason in ("REPO_NOT_FOUND", "REVISION_NOT_FOUND"):
                raise NotFoundError(
                    f"{field}: {error.message}", reason=reason, metadata={"field": field, "repo": name}
                ) from error
            if error.reason in ("FIELD_INVALID", "PATH_NOT_ALLOWED"):
                raise field_error(field, error.message.removeprefix("ref.repo: "), reason=error.reason) from error
            raise
