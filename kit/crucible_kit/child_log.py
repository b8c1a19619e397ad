"""What a child process says, in the host's log: so much of it and no more."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from crucible_kit.redaction import redact

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 60.0
PERIOD_CHARACTERS = 256 * 1024
_MAX_LINE_CHARACTERS = 8 * 1024
# What the host's log writes around a line, about.
_LINE_CHARACTERS = 100


def readable(line: bytes) -> str:
    """A line as text without secrets; of a longer one the first 8192 characters."""
    # Redacted before the cut, which would leave the beginning of a secret.
    text = redact(line.decode("utf-8", "replace").rstrip("\r"))
    return text if len(text) <= _MAX_LINE_CHARACTERS else f"{text[:_MAX_LINE_CHARACTERS]}…"


class ChildLog:
    """Writes the lines of one child into the host's log, at most 256 Ki characters in 60 s: of what is more it says how
    many lines were left out.
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._began = clock()
        self._written = 0
        self._left_out = 0

    def write(self, line: bytes) -> None:
        """Writes a line, or counts it."""
        now = self._clock()
        if now - self._began >= PERIOD_SECONDS:
            self.close()
            self._began, self._written = now, 0
        if self._written >= PERIOD_CHARACTERS:
            if not self._left_out:
                logger.warning(
                    "%s has written %d KiB in less than %g s: what else it writes in that time is left out",
                    *(self._name, PERIOD_CHARACTERS // 1024, PERIOD_SECONDS),
                )
            self._left_out += 1
            return
        text = readable(line)
        self._written += len(text) + _LINE_CHARACTERS
        logger.info("%s: %s", self._name, text)

    def close(self) -> None:
        """Tells of the lines that were left out."""
        if self._left_out:
            logger.warning("%s: %d lines were left out", self._name, self._left_out)
        self._left_out = 0
