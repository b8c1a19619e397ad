"""No test reaches beyond this machine: the hub's address is one where nobody listens."""

from __future__ import annotations

import os
import tempfile

import pytest

_NOBODY = "http://127.0.0.1:9"
_HOME = tempfile.mkdtemp(prefix="hf-home-")


def pytest_configure() -> None:
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.pop(name, None)
    os.environ.update(HF_ENDPOINT=_NOBODY, HF_HOME=_HOME)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    import shutil

    shutil.rmtree(_HOME, ignore_errors=True)
