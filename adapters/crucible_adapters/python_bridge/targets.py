"""What the targets of manifests name, imported ahead."""

from __future__ import annotations

import importlib
from typing import Any

from crucible_adapters.python_bridge.manifest import Library, Method, split_target
from crucible_adapters.python_bridge.types import Type, parse_type


class Targets:
    """Objects by target, such as sympy:Expr."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}
        self._types: dict[str, Type] = {}

    def __getitem__(self, target: str) -> Any:
        return self._loaded[target]

    def type(self, text: str) -> Type:
        """The type of that text."""
        return self._types[text]

    def load_library(self, library: Library) -> None:
        """Imports all that a manifest names. Raises what the import does; AttributeError, TypeError."""
        for function in library.functions.values():
            self._load_method(function)
            if not callable(self._load(function.target)):
                raise TypeError(f"{function.target} can't be called")
        for kind in library.classes.values():
            if not isinstance(self._load(kind.target), type):
                raise TypeError(f"{kind.target} is no class")
            if kind.value:
                self._load(kind.value)
            for method in kind.methods.values():
                self._load_method(method)
            for attribute in kind.attributes.values():
                self._load_type(attribute.returns)
        if library.warm_up:
            self._load(library.warm_up)

    def _load_method(self, method: Method) -> None:
        for each in method.parameters.values():
            self._load_type(each.type)
        self._load_type(method.returns)

    def _load_type(self, text: str) -> None:
        self._types[text] = parse_type(text)
        for target in self._types[text].targets():
            self._load(target)

    def _load(self, target: str) -> Any:
        if target not in self._loaded:
            module, name = split_target(target)
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
            self._loaded[target] = found
        return self._loaded[target]
