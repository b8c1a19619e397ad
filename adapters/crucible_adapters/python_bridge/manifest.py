"""Manifests of libraries: YAML files that say what may be called. Nothing here imports a library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from crucible_adapters.python_bridge.types import TARGET, parse_type
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, field_error
from crucible_kit.python_values import unparseable

_FOLDER = Path(__file__).parent / "libraries"
_NAME = r"[A-Za-z][A-Za-z0-9_]{0,63}"
_NO_DEFAULT = object()


def _check_type(text: str) -> str:
    parse_type(text)
    return text


def _check_specifier(text: str) -> str:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError(f"{text!r} is no range of versions, such as >=1.12,<2") from error
    return text


Name = Annotated[str, Field(pattern=f"^{_NAME}$")]
DottedName = Annotated[str, Field(pattern=rf"^{_NAME}(\.{_NAME})*$", max_length=255)]
Target = Annotated[str, Field(pattern=f"^{TARGET}$")]
TypeText = Annotated[str, AfterValidator(_check_type)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameter(_Entry):
    """One argument of a function."""

    type: TypeText = Field(description="What may be given.")
    default: Any = Field(default=_NO_DEFAULT, description="As the function has it; absent: the argument is required.")
    keyword_only: bool = Field(default=False, description="Can't be given by position.")
    max_length: int | None = Field(default=None, ge=0, description="Most characters, bytes or items.")

    @property
    def required(self) -> bool:
        """Whether a call must give it."""
        return self.default is _NO_DEFAULT


class Method(_Entry):
    """A method, or what functions have in common with one."""

    description: str = Field(default="", description="What it does, in a sentence.")
    parameters: dict[Name, Parameter] = Field(default_factory=dict, description="By name, in their order.")
    returns: TypeText = Field(default="any", description="What comes back; of a stream, each item.")
    timeout_seconds: float | None = Field(default=None, gt=0, description="Shorter limit of a call, in seconds.")
    max_result_bytes: int | None = Field(default=None, ge=1, description="Smaller limit of a result.")

    @property
    def signature(self) -> str:
        """As Python writes it."""
        parts: list[str] = []
        for name, each in self.parameters.items():
            if each.keyword_only and "*" not in parts:
                parts.append("*")
            parts.append(f"{name}: {each.type}" + ("" if each.required else f" = {each.default!r}"))
        return f"({', '.join(parts)})"


class Function(Method):
    """A function that may be called."""

    target: Target = Field(description="Where it is, such as sympy:gcd.")
    streams: bool = Field(default=False, description="Its result is iterated over.")


class Attribute(_Entry):
    """An attribute that may be read."""

    returns: TypeText = Field(default="any", description="What it is.")


class PythonClass(_Entry):
    """A class whose objects can be referenced; those of its subclasses too."""

    target: Target = Field(description="Where it is, such as sympy:Expr.")
    value: Target | None = Field(
        default=None, description="Function that makes a value of an object; absent: it travels as a reference only."
    )
    methods: dict[Name, Method] = Field(default_factory=dict, description="Methods that may be called.")
    attributes: dict[Name, Attribute] = Field(default_factory=dict, description="Attributes that may be read.")


class Library(_Entry):
    """What may be used of a library."""

    name: DottedName = Field(description="As calls say it.")
    distribution: str = Field(min_length=1, description="The package that has to be installed.")
    versions: Annotated[str, AfterValidator(_check_specifier)] = Field(description="Such as >=1.12,<2.")
    install: str = Field(default="", description="How to install it, for the error.")
    description: str = Field(default="", description="What it is for, in a sentence.")
    warm_up: Target | None = Field(default=None, description="Function that is called once before the first session.")
    functions: dict[DottedName, Function] = Field(default_factory=dict, description="By name.")
    classes: dict[Name, PythonClass] = Field(default_factory=dict, description="By name.")

    def installed_version(self) -> str:
        """Version of the package; empty: not installed."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return ""

    def problem(self) -> str:
        """Why it can't be used; empty: it can, as far as its package's metadata tell."""
        from packaging.specifiers import SpecifierSet

        found = self.installed_version()
        if not found:
            return f"the package {self.distribution} is not installed"
        if not SpecifierSet(self.versions).contains(found, prereleases=True):
            return f"version {found} of {self.distribution} is installed, the manifest allows {self.versions}"
        return ""


def load_manifests(builtin: Iterable[str], paths: Iterable[str]) -> dict[str, Library]:
    """The libraries by name. Reads files.

    Args:
        builtin: names of those that ship with the adapter.
        paths: files of the others.

    Raises:
        InvalidArgumentError: MANIFEST_INVALID: a file can't be read or is no manifest, or two have one name.
        FailedPreconditionError: PACKAGE_MISSING.
    """
    _require_packaging()
    libraries: dict[str, Library] = {}
    for path in [*(_FOLDER / f"{name}.yaml" for name in dict.fromkeys(builtin)), *map(Path, paths)]:
        library = _load(path)
        if library.name in libraries:
            raise field_error(
                "options.manifests", f"{path} is the second manifest of {library.name!r}", reason="MANIFEST_INVALID"
            )
        libraries[library.name] = library
    return dict(sorted(libraries.items()))


def _require_packaging() -> None:
    try:
        import packaging.specifiers  # noqa: F401
    except ImportError as error:
        raise FailedPreconditionError(
            "builtin:workers needs the Python package packaging, which can't be imported: "
            "pip install 'crucible-kitchen[math]'",
            reason="PACKAGE_MISSING",
            metadata={"package": "packaging", "extra": "math"},
        ) from error


def _load(path: Path) -> Library:
    if not path.is_absolute():
        problem = f"{str(path)!r} is not absolute: give the full path"
        raise field_error("options.manifests", problem, reason="MANIFEST_INVALID")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Library.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = f"{path} can't be read: {error}"
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{path}: {'.'.join(str(each) for each in first['loc']) or 'the file'}: {first['msg']}"
    raise field_error("options.manifests", problem, reason="MANIFEST_INVALID")


def bind(entry: Method, num_args: int, keywords: Iterable[str]) -> None:
    """Checks that a function takes so many arguments by position and those by name.

    Raises:
        InvalidArgumentError: ARGUMENT_UNPARSEABLE.
    """
    positional = [name for name, each in entry.parameters.items() if not each.keyword_only]
    given = set(keywords)
    for name in sorted(given):
        if name not in entry.parameters:
            raise _refused(f"kwargs[{name!r}]", "the function has no such argument", entry)
        if name in positional[:num_args]:
            raise _refused(f"kwargs[{name!r}]", "was given by position too", entry)
    if num_args > len(positional):
        raise _refused("args", f"{num_args} arguments, it takes at most {len(positional)} by position", entry)
    covered = {*positional[:num_args], *given}
    missing = [name for name, each in entry.parameters.items() if each.required and name not in covered]
    if missing:
        raise _refused("args", f"{', '.join(missing)} is missing", entry)


def parameters_of(entry: Method, num_args: int, keywords: Iterable[str]) -> Mapping[str, Parameter]:
    """The parameters of bound arguments, by the arguments' paths."""
    names = list(entry.parameters)
    by_position = {f"args[{place}]": entry.parameters[name] for place, name in enumerate(names[:num_args])}
    return by_position | {f"kwargs[{name!r}]": entry.parameters[name] for name in keywords}


def _refused(path: str, problem: str, entry: Method) -> InvalidArgumentError:
    return unparseable(path, f"{problem}: the signature is {entry.signature}")


def split_target(target: str) -> tuple[str, str]:
    """Module and name."""
    if not re.fullmatch(TARGET, target):
        raise ValueError(f"{target!r} is no target")
    module, _, name = target.partition(":")
    return module, name
