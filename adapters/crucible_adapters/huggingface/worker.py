"""One operation of the hub's libraries, then the end: reads a request from stdin, writes the answer to stdout.

The libraries retry, wait and keep settings for a whole process; a process of its own can be given its settings, and
ended. The end of stdin is the sign to stop.
"""

from __future__ import annotations

import base64
import importlib
import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from crucible_adapters.huggingface.errors import Subject, translated
from crucible_adapters.huggingface.library import Library
from crucible_kit.errors import KitchenError, to_status

# A shorter one may be a word of the text.
_SHORTEST_TOKEN = 8
_OPERATIONS = {
    "describe": "crucible_adapters.huggingface.repos",
    "snapshot": "crucible_adapters.huggingface.repos",
    "download": "crucible_adapters.huggingface.repos",
    "upload": "crucible_adapters.huggingface.repos",
    "find": "crucible_adapters.huggingface.datasets_hub",
    "prepare": "crucible_adapters.huggingface.datasets_hub",
    "stream": "crucible_adapters.huggingface.datasets_hub",
}

logger = logging.getLogger(__name__)

_PARTIAL = ".incomplete"


def main() -> None:
    """Entry point of the process."""
    answer_to = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_watch_parent, name="parent", daemon=True).start()
    answer_to.write(json.dumps(_answer(request)).encode())
    answer_to.close()
    sys.stderr.flush()
    # The libraries' threads are not waited for: nothing is left to do.
    os._exit(0)


def _watch_parent() -> None:
    sys.stdin.buffer.read()
    # the library's other threads go on to their next file
    sys.addaudithook(_refuse_downloads)
    _remove_partial_downloads()
    os._exit(1)


def _refuse_downloads(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]).endswith(_PARTIAL):
        raise OSError("the call was cancelled")


def _remove_partial_downloads() -> None:
    """Removes the downloads that this process has open: their names are random, nobody will go on with them."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        return
    for descriptor in descriptors.iterdir():
        try:
            target = Path(os.readlink(descriptor))
            if target.suffix == _PARTIAL:
                target.unlink()
        except OSError:
            continue  # closed, or removed, meanwhile


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    subject = Subject(**request["subject"], path=request["arguments"].get("path", ""))
    try:
        operation = getattr(importlib.import_module(_OPERATIONS[request["operation"]]), request["operation"])
        library = Library(subject, version=request["version"], timeout_seconds=request["timeout_seconds"])
        return {"result": operation(library, **request["arguments"])}
    except Exception as error:
        known = translated(error, subject)
        if known is None:
            logger.exception("%s of %s failed", request["operation"], subject.repo)
            return {"defect": type(error).__name__}
        return {"status": base64.b64encode(to_status(_without_token(known)).SerializeToString()).decode()}


def _without_token(error: KitchenError) -> KitchenError:
    """The error with the token out of its text, whoever put it there."""
    token = os.environ.get("HF_TOKEN", "")
    if len(token) >= _SHORTEST_TOKEN and token in error.message:
        error.message = error.message.replace(token, "<token>")
    return error


if __name__ == "__main__":
    main()
