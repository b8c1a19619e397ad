"""Generates proto/gen/python from proto/crucible and copies the google/rpc protos beside it.

Run it with the interpreter of .venv-proto (`make generate`). With --check nothing is written: the files that would
change are listed and the exit status is 1.
"""

import argparse
import sys
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

from grpc_tools import protoc  # pyright: ignore[reportMissingImports] - only .venv-proto has it

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
# What our protos import from google/rpc. Python takes the modules from the wheel; other languages need the sources.
GOOGLE_RPC = ("code.proto", "error_details.proto", "status.proto")


def generate(google: Path, out: Path) -> None:
    """Writes the _pb2.py, _pb2.pyi and _pb2_grpc.py of every proto below proto/crucible into `out`.

    `google` is the include folder that holds google/rpc.
    """
    sources = sorted(path.relative_to(PROTO).as_posix() for path in (PROTO / "crucible").rglob("*.proto"))
    if not sources:
        raise SystemExit(f"no .proto file below {PROTO / 'crucible'}")
    with as_file(files("grpc_tools") / "_proto") as well_known:
        options = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
        status = protoc.main(["protoc", f"-I{google}", f"-I{PROTO}", f"-I{well_known}", *options, *sources])
    if status != 0:
        raise SystemExit(f"protoc failed with status {status}")


def copy_google_rpc(out: Path) -> None:
    """Copies the google/rpc protos of the installed googleapis-common-protos wheel into `out`."""
    out.mkdir(parents=True)
    for name in GOOGLE_RPC:
        (out / name).write_bytes((files("google.rpc") / name).read_bytes())


def changes(fresh: Path, kept: Path) -> dict[Path, bytes | None]:
    """What makes the files below `kept` equal those below `fresh`: path to new bytes, or None for a file to remove."""
    wanted = {path.relative_to(fresh): path.read_bytes() for path in fresh.rglob("*") if path.is_file()}
    present = {path.relative_to(kept) for path in kept.rglob("*") if path.suffix in (".py", ".pyi", ".proto")}
    result: dict[Path, bytes | None] = {kept / path: None for path in present - wanted.keys()}
    for path, data in wanted.items():
        if path not in present or (kept / path).read_bytes() != data:
            result[kept / path] = data
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a file would change")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        google, python = Path(folder, "google"), Path(folder, "python")
        python.mkdir()
        copy_google_rpc(google / "google/rpc")
        generate(google, python)
        pending = changes(python, PROTO / "gen/python") | changes(google / "google", PROTO / "google")
    for path, data in sorted(pending.items()):
        print("stale" if check else "removed" if data is None else "written", path.relative_to(ROOT))
        if check:
            continue
        if data is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    if check and pending:
        print("generated code differs from the protos: run `make generate`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
