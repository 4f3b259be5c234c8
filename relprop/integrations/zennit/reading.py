"""The parameters of Zennit's own rules, read from their instances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zennit.composites
import zennit.rules
from zennit.core import BasicHook, Composite, Hook

from relprop.errors import InputError
from relprop.integrations.zennit import rules
from relprop.integrations.zennit.hook import RuleHook

__all__ = ["hooked", "own_rule"]

_PROTOCOL = ("backward", "forward", "pre_backward", "pre_forward", "post_forward", "register")


def _enclosed(function: Any, name: str) -> Any:
    """A variable that a function closes over."""
    return dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))[
        name
    ].cell_contents


def _stabilizer(hook: Any) -> dict[str, Any]:
    return {"stabilizer": _enclosed(hook.gradient_mapper, "stabilizer_fn")}


def _common(hook: Any) -> dict[str, Any]:
    return {**_stabilizer(hook), "zero_params": hook.param_modifiers[0].zero_params}


def _epsilon(hook: Any) -> dict[str, Any]:
    found = _common(hook)
    return {"epsilon": found["stabilizer"], "zero_params": found["zero_params"]}


def _gamma(hook: Any) -> dict[str, Any]:
    return {**_common(hook), "gamma": _enclosed(hook.param_modifiers[0].modifier, "gamma")}


def _alpha_beta(hook: Any) -> dict[str, Any]:
    return {**_common(hook), **{name: _enclosed(hook.reducer, name) for name in ("alpha", "beta")}}


def _box(hook: Any) -> dict[str, Any]:
    _, low, high = hook.input_modifiers
    return {**_common(hook), "low": _enclosed(low, "low"), "high": _enclosed(high, "high")}


def _beta_smooth(hook: Any) -> dict[str, Any]:
    return {"beta_smooth": hook.beta_smooth}


def _nothing(hook: Any) -> dict[str, Any]:
    return {}


_READERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Epsilon": _epsilon,
    "Gamma": _gamma,
    "ZPlus": _common,
    "AlphaBeta": _alpha_beta,
    "ZBox": _box,
    "Norm": _stabilizer,
    "WSquare": _common,
    "Flat": _common,
    "Pass": _nothing,
    "ReLUDeconvNet": _nothing,
    "ReLUGuidedBackprop": _nothing,
    "ReLUBetaSmooth": _beta_smooth,
}


def own_rule(hook: Hook, where: str = "rule") -> RuleHook:
    """The rule here that does what one of Zennit's does.

    Args:
        hook: a rule of Zennit's, or one of those here, which is returned as it is.
        where: what to call it in messages.

    Raises:
        InputError: a hook of one's own, or a rule of Zennit's with a method replaced.
    """
    if isinstance(hook, RuleHook):
        return hook
    kinds = type(hook).__mro__
    for position, kind in enumerate(kinds):
        if kind.__module__ == zennit.rules.__name__ and kind.__name__ in _READERS:
            changed = [name for cls in kinds[:position] for name in _PROTOCOL if name in vars(cls)]
            if changed:
                raise InputError(
                    f"{where}: {type(hook).__name__} is {kind.__name__} with its own "
                    f"{', '.join(changed)}; expected a rule as zennit.rules has it"
                )
            return _made(kind.__name__, hook, where)
    made = "put together from modifiers" if type(hook) is BasicHook else "a hook of one's own"
    raise InputError(
        f"{where}: {type(hook).__name__} is {made}, which cannot be converted; expected one of "
        f"zennit.rules: {', '.join(_READERS)}. It still works with Zennit's own attributors"
    )


def _made(name: str, hook: Any, where: str) -> RuleHook:
    try:
        parameters = _READERS[name](hook)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: the parameters of this {name} cannot be read ({error!r}); expected a rule "
            "of Zennit 0.5, with the modifiers that its constructor gives it"
        ) from error
    made = getattr(rules, name)(**parameters)
    assert isinstance(made, RuleHook)
    return made


def hooked(composite: Composite) -> Composite:
    """A Zennit composite whose rules are relprop's, for code that works with hooks.

    Args:
        composite: any of Zennit's; it is not changed.  Hooks that are no rules of Zennit's are
            kept as they are.

    Returns:
        A composite of Zennit's, with the same canonizers.
    """
    made: dict[Hook, Hook] = {}

    def mapping(context: dict[Any, Any], name: str, module: Any) -> Hook | None:
        hook = composite.module_map(context, name, module)
        if hook is not None and hook not in made:
            try:
                made[hook] = own_rule(hook)
            except InputError:
                made[hook] = hook
        return made.get(hook)

    return Composite(module_map=mapping, canonizers=list(composite.canonizers))
