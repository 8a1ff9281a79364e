"""Imports single modules of large libraries without the rest of them.

diffusers, mediapipe and openai-whisper import all of their subpackages, and through them transformers, peft, sympy,
matplotlib and numba: seconds of CPU time and hundreds of megabytes that a lip-sync run never uses. Here a package is
imported without running its `__init__`, and modules that only unused code refers to are replaced by placeholders during
the import. Afterwards `sys.modules` is restored: a later import of the library gets the complete one.

A library that is already imported, or whose layout has changed, is imported normally.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def import_light(
    module: str,
    *,
    bare: Sequence[str] = (),
    placeholders: Sequence[str] = (),
    absent: Sequence[str] = (),
    forget: str = "",
) -> ModuleType:
    """Import `module` without the modules that a lip-sync run does not need.

    Args:
        module: full name.
        bare: packages to import without running their `__init__`.
        placeholders: modules replaced by ones that have an empty class for every name.
        absent: modules whose import fails meanwhile; for optional dependencies.
        forget: package whose newly imported modules are removed from `sys.modules`, because they refer to placeholders.
            A later import loads them again.
    """
    if module in sys.modules:
        return sys.modules[module]
    before = set(sys.modules)
    try:
        with _prepared(bare, placeholders, absent):
            imported = importlib.import_module(module)
    except Exception:  # another version with another layout: import the complete library
        _forget(before, module.partition(".")[0])
        return importlib.import_module(module)
    if forget:
        _forget(before, forget)
    return imported


@contextmanager
def replaced_function(module: ModuleType, name: str, other: Callable[..., Any]) -> Iterator[None]:
    """Replace a function of a module inside the block."""
    before = getattr(module, name)
    setattr(module, name, other)
    try:
        yield
    finally:
        setattr(module, name, before)


class _Placeholder(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def _prepared(bare: Sequence[str], placeholders: Sequence[str], absent: Sequence[str]) -> Iterator[None]:
    """Entries of `sys.modules` for modules that are not imported yet; they are removed at the end."""
    added: list[str] = []
    try:
        for name in bare:
            if name not in sys.modules:
                sys.modules[name] = _bare_package(name)
                added.append(name)
        for name in placeholders:
            if name not in sys.modules:
                sys.modules[name] = _Placeholder(name)
                added.append(name)
        for name in absent:
            if name not in sys.modules:
                sys.modules[name] = None  # type: ignore[assignment]  # documented: importing it then fails
                added.append(name)
        yield
    finally:
        for name in added:
            sys.modules.pop(name, None)


def _bare_package(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    return package


def _forget(before: set[str], package: str) -> None:
    """Remove the modules of `package` that were imported since `before`."""
    for name in set(sys.modules) - before:
        if name == package or name.startswith(f"{package}."):
            del sys.modules[name]
