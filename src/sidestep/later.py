"""Names of a package whose modules are imported when they are asked for: a process pays for what it uses."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["later"]


def later(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package, which import a name's module when the name is asked for.

    Modules of the package that it does not mention come when they are asked for, too, as they would be there if all
    were imported at once.

    Args:
        package: its own `__name__`.
        modules: a module of it, by its place below, to the names, with spaces between, that the package takes from it.
            No name may be that of a module beside it: an import of the module would put it in the name's place.
    """
    places = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name in places:
            found = getattr(import_module(f"{package}.{places[name]}"), name)
            setattr(sys.modules[package], name, found)  # the next time it is there
            return found
        if name.isidentifier() and not name.startswith("_") and find_spec(f"{package}.{name}"):
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*vars(sys.modules[package]), *places})
