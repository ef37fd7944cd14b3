"""Classes by name: built in, registered by a program, or announced by an installed package."""

import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import meant

Kind = TypeVar("Kind")
Added = TypeVar("Added", bound=type[Any])


class Registry(Generic[Kind]):
    """Classes of one purpose, such as "objective", each imported when it is first asked for.

    `built_in` holds "module:class" by name; a package adds a class by an entry point of the `group` with its name.
    """

    def __init__(self, what: str, group: str, built_in: Mapping[str, str]) -> None:
        self.what, self.group, self.built_in = what, group, built_in
        self.registered: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Added], Added]:
        """Class decorator that adds a class; refused where the name is another class's.

        The same class defined once more, as by a cell of a notebook that is run again, takes its own place.
        """

        def added(cls: Added) -> Added:
            there = self.registered.get(name, cls)
            if name in self.built_in or (there.__module__, there.__qualname__) != (cls.__module__, cls.__qualname__):
                raise CoCoMixError(f"the {self.what} {name!r} is there already; give {cls.__name__} another name.")
            self.registered[name] = cls
            return cls

        return added

    def names(self) -> tuple[str, ...]:
        """Of all classes: built in, registered in this process, and of installed packages."""
        installed = (point.name for point in entry_points(group=self.group))
        return tuple(dict.fromkeys((*self.built_in, *self.registered, *installed)))

    def find(self, name: Any) -> Kind:
        """The class of a name, for which a recipe may hold anything; refused where there is none."""
        name = name if isinstance(name, str) else repr(name)
        if name in self.registered:
            return cast("Kind", self.registered[name])
        if name in self.built_in:
            return cast("Kind", pkgutil.resolve_name(self.built_in[name]))
        for point in entry_points(group=self.group, name=name):
            return cast("Kind", point.load())
        known = list(self.names())
        raise CoCoMixError(
            f"there is no {self.what} {name!r}{meant(name, known)}; choose one of {', '.join(known)}, or import the "
            "module that registers it."
        )
