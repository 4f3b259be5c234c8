"""Additional arguments without a batch axis, as buffers of the model.

Captum lets a table of positions or a matrix of neighbours through as it is; an `Explainer` wants
one batch size of all tensors that the model is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

from relprop.integrations.captum.forms import Arguments

__all__ = ["Held", "Holding"]


class Held(nn.Module):
    """A model that has some of its arguments from here, whatever it is given in their places.

    Args:
        model: the model.
        places: which, among the leaves of its positional arguments.
    """

    def __init__(self, model: nn.Module, places: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self.places = places

    def hold(self, leaves: Sequence[Any]) -> None:
        """Take these arguments' values for the calls that follow."""
        for place in self.places:
            self.register_buffer(_name(place), leaves[place].detach(), persistent=False)

    def forward(self, *arguments: Any) -> Any:
        """The model's output."""
        leaves, spec = pytree.tree_flatten(arguments)
        for place in self.places:
            leaves[place] = getattr(self, _name(place))
        return self.model(*pytree.tree_unflatten(leaves, spec))


def _name(place: int) -> str:
    return f"argument_{place}"


_PLANNED = ("_explainers", "_held", "_kept")


class Holding:
    """A method of Captum's that keeps the model with its unbatched arguments from call to call."""

    _held: Held | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy keeps: not what was planned, which holds locks."""
        return {key: value for key, value in vars(self).items() if key not in _PLANNED}

    def _holding(self, model: nn.Module, arguments: Arguments) -> nn.Module:
        """The model to call on `arguments.batched`: itself, if all arguments are there.

        What was no batch in one call is none in the next, where it may be as long by chance.
        """
        leaves, spec = pytree.tree_flatten(arguments.all)
        seen: set[int] = self.__dict__.setdefault("_unbatched", {}).setdefault(str(spec), set())
        seen.update(arguments.unbatched)
        arguments.unbatched = tuple(i for i in sorted(seen) if isinstance(leaves[i], Tensor))
        if not arguments.unbatched:
            return model
        held = self._held
        if held is None or held.model is not model or held.places != arguments.unbatched:
            held = self._held = Held(model, arguments.unbatched)
        held.hold(leaves)
        return held
