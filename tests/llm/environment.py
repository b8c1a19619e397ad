"""What the providers' libraries must not see of the machine on which the tests run."""

from __future__ import annotations

import os

import pytest

_VARIABLES = ("ANTHROPIC_", "OPENAI_", "GEMINI_", "GOOGLE_")


def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides keys, addresses and proxies: the libraries read them from the environment."""
    for name in list(os.environ):
        if name.startswith(_VARIABLES) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
