"""What a Zennit composite says of a module, however composites are nested."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn
from zennit.composites import (
    LayerMapComposite,
    MixedComposite,
    NameMapComposite,
    SpecialFirstLayerMapComposite,
)
from zennit.core import Composite, Hook

from relprop.errors import InputError

__all__ = ["Lookup"]


class Lookup:
    """The hooks of a composite, by module.

    Args:
        composite: any of Zennit's; one whose mapping is of its user's making is asked once for
            every module of the model, in Zennit's order.
        model: what it is meant for.

    Raises:
        InputError: a map of names has one that is no module's, or names given as one string, which
            Zennit takes for all modules whose names are parts of it.
    """

    def __init__(self, composite: Composite, model: nn.Module) -> None:
        self.composite = composite
        self.names = {name: module for name, module in model.named_modules()}
        self._asked: dict[int, dict[str, Hook]] = {}
        self._check_names()

    def hook(self, name: str | None, module: nn.Module, first: bool) -> Hook | None:
        """The hook of a module.

        Args:
            name: its path; None: of its class alone.
            module: the module.
            first: whether it is a first layer.
        """
        return self._hook(self.composite, name, module, first)

    def first_hook(self, module: nn.Module) -> Hook | None:
        """The hook that a module of that class has as first layer, if there is one for first."""
        found = self._hook(self.composite, None, module, True)
        return None if found is self._hook(self.composite, None, module, False) else found

    def is_first(self, name: str) -> bool:
        """Whether Zennit takes that module for the first layer."""
        for other, module in self.names.items():
            if self.first_hook(module) is not None:
                return other == name
        return False

    def is_named(self, name: str) -> bool:
        """Whether a map of names has the module."""
        return any(name in names for names, _ in self._name_maps(self.composite))

    def _check_names(self) -> None:
        for names, hook in self._name_maps(self.composite):
            if isinstance(names, str):
                raise InputError(
                    f"{type(hook).__name__}: its names are the string {names!r}, of which Zennit "
                    f"takes every part for a name; expected a tuple, ({names!r},)"
                )
            for name in names:
                if name not in self.names:
                    near = difflib.get_close_matches(name, list(self.names), n=3)
                    hint = f"; near it: {', '.join(near)}" if near else ""
                    raise InputError(
                        f"{type(hook).__name__}: the model has no module {name!r}{hint}"
                    )

    def _name_maps(self, composite: Composite) -> list[tuple[Any, Hook]]:
        if isinstance(composite, MixedComposite):
            return [pair for part in composite.composites for pair in self._name_maps(part)]
        return list(composite.name_map) if isinstance(composite, NameMapComposite) else []

    def _hook(
        self, composite: Composite, name: str | None, module: nn.Module, first: bool
    ) -> Hook | None:
        mapping = getattr(composite.module_map, "__func__", composite.module_map)
        if mapping is MixedComposite.mapping:
            found = (self._hook(part, name, module, first) for part in composite.composites)
            return next((hook for hook in found if hook is not None), None)
        if mapping is NameMapComposite.mapping:
            return next((hook for names, hook in composite.name_map if name in names), None)
        if mapping is SpecialFirstLayerMapComposite.mapping and first:
            for kinds, hook in composite.first_map:
                if isinstance(module, kinds):
                    return hook
        if mapping in (LayerMapComposite.mapping, SpecialFirstLayerMapComposite.mapping):
            return next((hook for kinds, hook in composite.layer_map if isinstance(module, kinds)),
                        None)  # fmt: skip
        return None if name is None else self._of_mapping(composite).get(name)

    def _of_mapping(self, composite: Composite) -> dict[str, Hook]:
        """What a mapping of the user's says of each module."""
        if id(composite) not in self._asked:
            context: dict[Any, Any] = {}
            found = {
                name: composite.module_map(context, name, module)
                for name, module in self.names.items()
            }
            self._asked[id(composite)] = {name: h for name, h in found.items() if h is not None}
        return self._asked[id(composite)]
