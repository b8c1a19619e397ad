"""Starters of adapters: the files of a folder that serves a port, with its test. The methods come from the protos."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template

from google.protobuf.descriptor import MethodDescriptor

from crucible_kit.capabilities import capability_of
from crucible_kit.errors import field_error
from crucible_kit.ports import PORTS, Port

_TEMPLATES = Path(__file__).parent / "templates"
# What stands in the templates for the name of the adapter.
_PYTHON_NAME = "my-adapter"
_KIT = "crucible"
_FORGETS = "In memory, blobs do not outlive the process"
_TYPESCRIPT: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    # port -> (file, its adapter's name, files beside it)
    "reward": ("reward.mjs", "node-rewards", {}),
    "blob": ("blob_store.mjs", "node-blobs", {"blob_folder.mjs": "blob_folder.mjs"}),
}

COMPLETE: Mapping[str, tuple[str, ...]] = {
    "python": ("blob", "embedding", "llm", "reward"),
    "typescript": tuple(sorted(_TYPESCRIPT)),
}
"""By language, the ports whose starter does all that the contract asks for; those of others are skeletons."""


def starter(port: str, language: str, name: str, folder: Path) -> dict[str, str]:
    """The files of a starter, by path.

    Args:
        port: one of PORTS.
        language: python or typescript.
        name: the adapter's, such as my-rewards.
        folder: where it will be, for the commands in its README.
    """
    write = _python if language == "python" else _typescript
    return write(PORTS[port], name, folder)


def write_starter(files: Mapping[str, str], folder: Path) -> None:
    """Writes the files into a new or empty folder.

    Raises:
        InvalidArgumentError: FIELD_INVALID, the folder holds something, or is none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise field_error("DIR", f"{folder} is not empty, and nothing is overwritten: choose another folder")
        for path, text in files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
    except OSError as error:
        raise field_error("DIR", f"{folder} can't be written: {error.strerror}: choose another folder") from error


def _python(port: Port, name: str, folder: Path) -> dict[str, str]:
    complete = port.name in COMPLETE["python"]
    text = _template(f"python/{port.name}.py").replace(_PYTHON_NAME, name) if complete else _python_skeleton(port, name)
    # The blobs of the starter lie in memory: nothing of them can outlive the process.
    forgets = port.name == "blob"
    note = f"{_FORGETS}, which --exec kills for BLB-RESTART-01: known to fail until they are kept."
    fields = {
        **_fields(port, "python", name, folder),
        "only": "ONLY = ()\n"
        if complete
        else 'ONLY = ("HSK-",)  # the handshake; make it () once the methods are there\n',
        "restart": "" if forgets else ", restart=opened.restart",
        "restart_note": f"# {_FORGETS}: add restart=opened.restart once they do.\n        " if forgets else "",
        "conformance_flags": " --known-failing known_failing.txt" if forgets else _only_flag(complete),
        "conformance_note": f" {note}" if forgets else "",
    }
    files = {
        "adapter.py": text,
        "test_adapter.py": _filled("python/test_adapter.py.txt", fields),
        "README.md": _filled("python/README.md", fields),
    }
    return {**files, "known_failing.txt": f"BLB-RESTART-01  # {note}\n"} if forgets else files


def _typescript(port: Port, name: str, folder: Path) -> dict[str, str]:
    complete = port.name in COMPLETE["typescript"]
    beside: dict[str, str] = {}
    if complete:
        file, old_name, others = _TYPESCRIPT[port.name]
        text = _kit_imports(_template(f"typescript/{file}")).replace(f"'{old_name}'", f"'{name}'")
        text = text.replace(f"node {file}", "node adapter.mjs")
        beside = {to: _kit_imports(_template(f"typescript/{source}")) for source, to in others.items()}
    else:
        text = _typescript_skeleton(port, name)
    root = port.name == "blob"
    place = shlex.quote(str(folder))
    run = "node adapter.mjs --root blobs" if root else "node adapter.mjs"
    fields = {
        **_fields(port, "typescript", name, folder),
        "only": "" if complete else ", '--only', 'HSK-'",
        "arguments": "['--root', join(folder, 'blobs')]" if root else "[]",
        "run": run,
        "exec_run": f"node {place}/adapter.mjs --root {place}/blobs" if root else f"node {place}/adapter.mjs",
        "conformance_flags": _only_flag(complete),
    }
    package = json.loads(_template("typescript/kit_package.json"))
    described = {
        "name": name,
        "private": True,
        "description": f"An adapter of Crucible Kitchen's port {port.name}",
        "type": "module",
        "engines": package["engines"],
        "scripts": {"start": run, "test": "node --test"},
        "dependencies": package["dependencies"],
    }
    return {
        "adapter.mjs": text,
        **beside,
        "adapter.test.mjs": _filled("typescript/adapter.test.mjs.txt", fields),
        "package.json": json.dumps(described, indent=2) + "\n",
        "README.md": _filled("typescript/README.md", fields),
        **_kit(port),
    }


def _kit(port: Port) -> dict[str, str]:
    """The kit of JavaScript, and all protos that it may have to read."""
    files = {f"{_KIT}/adapter.mjs": _template("typescript/adapter.mjs")}
    for file in sorted((_TEMPLATES / "typescript" / "kit").glob("*.mjs")):
        files[f"{_KIT}/kit/{file.name}"] = file.read_text("utf-8")
    for path in _protos(port):
        files[f"{_KIT}/proto/{path}"] = _template(f"proto/{path}")
    return files


def _protos(port: Port) -> Iterator[str]:
    wanted = {"crucible/adapter", "crucible/type", f"crucible/port/{port.name}", "google/rpc"}
    # A port may use the messages of another one.
    wanted |= {each.name.rpartition("/")[0] for each in port.service.file.dependencies}
    for folder in sorted(wanted):
        root = _TEMPLATES / "proto" / folder
        yield from sorted(file.relative_to(_TEMPLATES / "proto").as_posix() for file in root.rglob("*.proto"))


def _kit_imports(text: str) -> str:
    return text.replace("'./adapter.mjs'", f"'./{_KIT}/adapter.mjs'")


def _fields(port: Port, language: str, name: str, folder: Path) -> dict[str, str]:
    """What both README and test of a starter say."""
    complete = port.name in COMPLETE[language]
    rows = [
        f"| `{method.name}`{_optional(port, method)} | {_stream(method.client_streaming)}`{method.input_type.name}` | "
        f"{_stream(method.server_streaming)}`{method.output_type.name}` |"
        for method in port.service.methods
    ]
    return {
        "name": name,
        "port": port.name,
        "service": port.service.full_name,
        "folder": shlex.quote(str(folder)),
        "kit": "PATH/TO/crucible-kitchen",
        "methods": "\n".join(rows),
        "complete": ", ".join(COMPLETE[language]),
        "state": "It does all that the contract asks for, in a small way: put your own work in its place."
        if complete
        else "It is a skeleton: it serves and shakes hands, and its methods wait to be written.",
    }


def _optional(port: Port, method: MethodDescriptor) -> str:
    capability = capability_of(f"/{port.service.full_name}/{method.name}")
    return f" (capability `{capability}`)" if capability else ""


def _stream(streaming: bool) -> str:
    return "stream of " if streaming else ""


def _only_flag(complete: bool) -> str:
    return "" if complete else " --only HSK-"


def _class_name(port: Port) -> str:
    return port.service.name.removesuffix("Service")


def _python_skeleton(port: Port, name: str) -> str:
    module = port.service.file.name.rpartition("/")[2].removesuffix(".proto") + "_pb2"
    package = port.service.file.package
    methods = "\n".join(_python_method(method, module) for method in port.service.methods)
    return f'''"""{name}: an adapter of the port {port.name}."""

from {package} import {module}_grpc
from crucible_kit.author import run_adapter


class {_class_name(port)}({module}_grpc.{port.service.name}Servicer):
    """{port.service.name}. A method that is not written answers UNIMPLEMENTED.

    They need `from collections.abc import AsyncIterator`, `from typing import Any` and
    `from {package} import {module}`.
    """

{methods}

if __name__ == "__main__":
    run_adapter(name="{name}", ports={{"{port.name}": {_class_name(port)}()}})
'''


def _python_method(method: MethodDescriptor, module: str) -> str:
    request, response = f"{module}.{method.input_type.name}", f"{module}.{method.output_type.name}"
    given = f"request_iterator: AsyncIterator[{request}]" if method.client_streaming else f"request: {request}"
    answer = f"AsyncIterator[{response}]" if method.server_streaming else response
    body = f"yield {response}(...)" if method.server_streaming else f"return {response}(...)"
    lines = [f"async def {method.name}(", f"    self, {given}, context: Any", f") -> {answer}:", f"    {body}"]
    return "".join(f"    # {line}\n" for line in lines)


def _typescript_skeleton(port: Port, name: str) -> str:
    optional = [
        (method, capability)
        for method in port.service.methods
        if (capability := capability_of(f"/{port.service.full_name}/{method.name}"))
    ]
    names = "capabilityMissing, runAdapter" if optional else "runAdapter"
    known = dict.fromkeys(method.name for method, _ in optional)
    methods = [_typescript_method(method) for method in port.service.methods if method.name not in known]
    methods += [
        f"  async {_star(method)}{method.name}() {{\n"
        f"    throw capabilityMissing('{port.name}', '{capability}', '{method.name} is not served here');\n  }}\n"
        for method, capability in optional
    ]
    body = "\n".join(methods)
    return f"""// {name}: an adapter of the port {port.name}.
//
//   node adapter.mjs [--listen ADDRESS]      or, in a manifest, exec:

import {{ resolve }} from 'node:path';
import {{ fileURLToPath }} from 'node:url';
import {{ parseArgs }} from 'node:util';
import {{ {names} }} from './{_KIT}/adapter.mjs';

/**
 * {port.service.name}. A method that is not written answers UNIMPLEMENTED METHOD_MISSING. Messages are plain objects
 * under the field names of {_KIT}/proto/{port.service.file.name}.
 */
export class {_class_name(port)} {{
{body}}}

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {{
  const {{ values }} = parseArgs({{ options: {{ listen: {{ type: 'string' }} }} }});
  await runAdapter({{ name: '{name}', listen: values.listen, ports: {{ {port.name}: new {_class_name(port)}() }} }});
}}
"""


def _typescript_method(method: MethodDescriptor) -> str:
    given = "requests" if method.client_streaming else "request"
    verb = "yield" if method.server_streaming else "return"
    head = f"  // async {_star(method)}{method.name}({given}, call)"
    return f"{head} {{\n  //   {verb} {{ ... }}; // {method.output_type.name}\n  // }}\n"


def _star(method: MethodDescriptor) -> str:
    return "*" if method.server_streaming else ""


class _Text(Template):
    # The usual $ is JavaScript's own.
    delimiter = "%"


def _filled(path: str, fields: Mapping[str, str]) -> str:
    return _Text(_template(path)).substitute(fields)


def _template(path: str) -> str:
    return (_TEMPLATES / path).read_text("utf-8")
