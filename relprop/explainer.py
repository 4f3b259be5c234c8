"""The public face: `Explainer`, and `explain` in one line."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relprop import backends, gradients, methods, run
from relprop.call import Call
from relprop.captured import KEPT, captured
from relprop.conservation import StepRecord
from relprop.errors import InputError, PlanningError
from relprop.explanation import Explanation
from relprop.gradients import GradientPlan
from relprop.graph import Graph
from relprop.grouping import explain_within_memory
from relprop.lengths import explain_by_length
from relprop.modes import neutral_modes
from relprop.plan import Plan
from relprop.selection import explained_inputs, explained_labels, layer_value, output_value
from relprop.targets import Target, resolve_target, seed, squeeze_targets, start_sums
from relprop.unwrap import unwrap

__all__ = ["Explainer", "explain"]

_BACKENDS = ("auto", "triton", "aten", "reference")
_NAN_POLICIES = ("raise", "propagate")


class Explainer:
    """Explains a model's predictions by one method.

    The model is captured at the first call with inputs of a new shape (the batch aside), and is
    never touched.  Its parameters are read at every call.

    Args:
        model: the module to explain, in eval mode.
        method: a method's name (`relprop.methods.names()`), a rule, a composite or a method.
        method_options: arguments of a named method, such as `low` and `high`.
        start: the relevance at the target: None for the method's own, "output", "one", "relu", or
            a function of the output.
        layers: module paths whose relevance `explain` returns too.
        output: which of several outputs: an index, a key, or a function that picks it.
        inputs: which inputs to explain, positions and keywords; None for all floating inputs and
            the token inputs of embeddings.
        batch_dim: the axis of the samples, 0 or 1.
        backend: "auto", "triton", "aten" or "reference".
        precision: "highest", "high" or "medium".
        nan_policy: "raise" refuses inputs and outputs that are not finite, "propagate" takes them.
        frozen: the parameters will not change any more: keep what is derived from them.
        example_inputs: a tensor, or a tuple of inputs, to plan with at once.

    Raises:
        InputError: an option is not one of those above.
        CaptureError, PlanningError: with `example_inputs`, as when calling.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Any,
        *,
        method_options: Mapping[str, Any] | None = None,
        start: str | Callable[[Tensor], Tensor] | None = None,
        layers: Sequence[str] = (),
        output: int | str | Callable[[Any], Any] | None = None,
        inputs: Any = None,
        batch_dim: int = 0,
        backend: str = "auto",
        precision: str = "highest",
        nan_policy: str = "raise",
        frozen: bool = False,
        example_inputs: Any = None,
    ) -> None:
        self.model = unwrap(model)
        self.method = methods.resolve(method, method_options)
        self.start = self.method.start if start is None else start
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        self.output = output
        self.inputs = None if inputs is None else _as_list(inputs)
        self.batch_dim = _one_of("batch_dim", batch_dim, (0, 1))
        self.precision = _one_of("precision", precision, backends.PRECISIONS)
        self.nan_policy = _one_of("nan_policy", nan_policy, _NAN_POLICIES)
        self.backend = _backend_name(_one_of("backend", backend, _BACKENDS))
        self.frozen = frozen
        self._lock = threading.Lock()
        self._plans: OrderedDict[Any, tuple[Graph, Plan | GradientPlan, run.Engine | None]] = (
            OrderedDict()
        )
        if example_inputs is not None:
            example = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
            call = Call.of(example, None, self.batch_dim)
            self._prepare(call)

    @property
    def plan(self) -> Plan | GradientPlan:
        """The plan used last: printable.

        Raises:
            PlanningError: nothing has been planned yet.
        """
        if not self._plans:
            raise PlanningError(
                "Explainer.plan: nothing is planned yet; call the explainer, or construct it with "
                "example_inputs="
            )
        return next(reversed(self._plans.values()))[1]

    def __call__(
        self,
        *inputs: Any,
        target: Any = None,
        start: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        lengths: Any = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Relevance of the inputs.

        Args:
            inputs: the model's positional arguments.
            target: an int; one a sample; `[batch, K]` for K of each sample; a tuple or list of
                tuples for outputs of several dimensions; None where there is one value a sample;
                or a function from the output to one of these, as for the predicted class.
            start: overrides the explainer's; also a tensor shaped like the output, without target.
            kwargs: the model's keyword arguments.
            lengths: valid steps of each sample `[batch]`, for models with recurrent layers on
                padded inputs: each sample is explained as if it were alone and had only these,
                and relevance of the padding is exactly 0.

        Returns:
            A tensor shaped like the input (a tuple for several), with an axis of K after the batch
            axis for a 2-d target.  Detached; float64 for a float64 input, else float32.

        Raises:
            InputError: an input, target or start is of the wrong shape, type or value.
            CaptureError: the model cannot be captured.
            PlanningError: operations lack a rule; all are listed with their module paths.
        """
        result = self._run(inputs, kwargs, target, start, lengths, full=False)
        return result.relevance

    def attribute(
        self,
        *inputs: Any,
        target: Any = None,
        return_convergence_delta: bool = False,
        start: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        lengths: Any = None,
    ) -> Any:
        """Relevance, and if asked the convergence delta: start minus relevance, summed a sample."""
        result = self._run(inputs, kwargs, target, start, lengths, full=False)
        if return_convergence_delta:
            return result.relevance, result.convergence_delta
        return result.relevance

    def explain(
        self,
        *inputs: Any,
        target: Any = None,
        start: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        lengths: Any = None,
        report: bool = True,
    ) -> Explanation:
        """An `Explanation`: relevance, output, hidden layers, conservation report.

        Without `report` the conservation report stays empty, which saves its sums over every layer.
        """
        return self._run(inputs, kwargs, target, start, lengths, full=True, report=report)

    def _run(
        self,
        inputs: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        target: Any,
        start: Any,
        lengths: Any,
        full: bool,
        report: bool = False,
    ) -> Explanation:
        call = Call.of(inputs, kwargs, self.batch_dim)
        with neutral_modes():
            if lengths is None:
                return self._within_memory(call, target, start, full, report)

            def explained(part: Call, own_target: Any, own_start: Any) -> Explanation:
                return self._within_memory(part, own_target, own_start, full, report)

            return explain_by_length(self.model, call, target, start, lengths, explained)

    def _within_memory(
        self, call: Call, target: Any, start: Any, full: bool, report: bool
    ) -> Explanation:
        def explained(part: Call, own_target: Any, own_start: Any) -> Explanation:
            return self._explained_call(part, own_target, own_start, full, report)

        if getattr(self.method, "noise", 0.0):  # drawn for a whole batch: halves get other noise
            return explained(call, target, start)
        return explain_within_memory(call, target, start, explained)

    def _explained_call(
        self, call: Call, target: Any, start: Any, full: bool, report: bool
    ) -> Explanation:
        self._check_inputs(call)
        graph, plan, engine = self._prepare(call)
        values = dict(zip(graph.inputs, call.leaves, strict=True))
        labels = explained_labels(self.inputs, call)
        chosen = explained_inputs(graph, call, plan, labels)
        named = {path: layer_value(plan, path) for path in self.layers}
        begin = _Start(target, self.start if start is None else start, call, self.nan_policy, plan)
        wanted = [*chosen, *named.values()] if full else chosen
        records: list[StepRecord] = []
        if isinstance(plan, GradientPlan):
            output, seeds, found = gradients.attribute(plan, self.model, values, begin, wanted)
        else:
            assert engine is not None
            passed = run.forward(plan, engine, self.model, values)
            output, seeds = passed.output, begin(passed.output)
            batch = (call.batch, self.batch_dim)
            kept = records if report else None
            found = run.relevance(plan, engine, passed, seeds, wanted, kept, batch)
            for name in set(wanted) - {*found, *values}:
                found[name] = seeds.new_zeros(seeds.shape[0], *passed.shapes[name])
        maps = [_map(found.get(name), values[name], seeds) for name in chosen]
        return self._result(call, begin, output, seeds, maps, named, found, records)

    def _result(
        self,
        call: Call,
        begin: _Start,
        output: Tensor,
        seeds: Tensor,
        maps: list[Tensor],
        named: dict[str, str],
        found: dict[str, Tensor],
        records: list[StepRecord],
    ) -> Explanation:
        target, axis = begin.resolved, self.batch_dim
        delta = start_sums(seeds, begin.axis)
        for relevance in maps:
            delta = delta - start_sums(relevance, axis).to(delta)
        shaped = tuple(squeeze_targets(relevance, target, axis) for relevance in maps)
        graph = begin.plan.graph
        hidden = {
            path: squeeze_targets(
                found[name],
                target,
                graph.batch_axis(name, found[name].shape[1:], call.batch, axis) or 0,
            )
            for path, name in named.items()
            if name in found
        }
        return Explanation(
            relevance=shaped[0] if len(shaped) == 1 else shaped,
            output=output.detach(),
            target=begin.target,
            layers=hidden,
            convergence_delta=squeeze_targets(delta, target),
            method=self.method.name,
            steps=tuple(records),
        )

    def _check_inputs(self, call: Call) -> None:
        if not any(isinstance(leaf, Tensor) for leaf in call.leaves):
            kinds = sorted({type(leaf).__name__ for leaf in call.leaves}) or ["nothing"]
            raise InputError(f"inputs: {', '.join(kinds)}; expected at least one torch.Tensor")
        _ = call.batch
        for label, leaf in zip(call.labels, call.leaves, strict=True):
            if not isinstance(leaf, Tensor):
                continue
            if leaf.is_meta:
                raise InputError(f"input {label}: a tensor on the meta device; expected values")
            if leaf.is_complex() or leaf.layout is not torch.strided:
                raise InputError(
                    f"input {label}: {leaf.dtype}, {leaf.layout}; expected real, dense numbers"
                )
            if self.nan_policy == "raise" and leaf.is_floating_point():
                _check_finite(f"input {label}", leaf)

    def _prepare(self, call: Call) -> tuple[Graph, Plan | GradientPlan, run.Engine | None]:
        graph = captured(self.model, call)
        # the graph is held by the entry, so that its id stays its own; a recorded one serves once
        key = id(graph) if graph.origin == "export" else "recorded"
        with self._lock:
            entry = self._plans.get(key)
            if entry is None or entry[0] is not graph:
                plan = self._bind(graph, call)
                engine = run.Engine(backends.get(self.backend), self.frozen)
                entry = (graph, plan, engine)
                self._plans[key] = entry
                while len(self._plans) > KEPT:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
            return entry

    def _bind(self, graph: Graph, call: Call) -> Plan | GradientPlan:
        output = output_value(graph, self.output, type(self.model).__name__)
        explained = explained_labels(self.inputs, call)
        tensors = [
            (name, leaf)
            for name, leaf, label in zip(graph.inputs, call.leaves, call.labels, strict=True)
            if isinstance(leaf, Tensor) and (explained is None or label in explained)
        ]
        floating = [name for name, leaf in tensors if leaf.is_floating_point()]
        integer = [name for name, leaf in tensors if _is_integer(leaf)]
        if isinstance(self.method, methods.GradientMethod):
            return GradientPlan.make(graph, output, self.method, floating, integer)
        assert isinstance(self.method, methods.PropagationMethod)
        named = (self.method.name, self.method.composite, output, self.backend, self.precision)
        key = (*named, tuple(floating), tuple(integer))
        if key not in graph.plans:  # kept with the graph: `explain` in a loop plans once
            graph.plans[key] = Plan.make(
                graph,
                output,
                self.method.composite,
                floating=floating,
                integer=integer,
                backend=self.backend,
                precision=self.precision,
                method=self.method.name,
            )
        plan: Plan = graph.plans[key]
        return plan


class _Start:
    """From an output to the starting relevance; remembers the target it resolved."""

    def __init__(
        self, target: Any, start: Any, call: Call, nan_policy: str, plan: Plan | GradientPlan
    ) -> None:
        self.target, self.start, self.call, self.nan_policy = target, start, call, nan_policy
        self.plan = plan
        self.resolved: Target | None = None
        self.axis = 0

    def __call__(self, output: Tensor) -> Tensor:
        if self.nan_policy == "raise":
            _check_finite("the model's output", output)
        batch, graph = self.call.batch, self.plan.graph
        axis = graph.batch_axis(self.plan.output, output.shape, batch, self.call.batch_dim)
        self.axis = axis or 0
        if isinstance(self.start, Tensor):
            if self.target is not None:
                raise InputError("start: a tensor beside a target; expected target=None")
        else:
            if callable(self.target):
                self.target = self.target(output.detach())
            self.resolved = resolve_target(self.target, output.shape, batch, self.axis)
        begun = seed(self.resolved, output, self.start)
        if self.nan_policy == "raise":
            _check_finite("the starting relevance", begun)
        return begun


def explain(
    model: nn.Module,
    *inputs: Any,
    target: Any = None,
    method: Any = "epsilon_plus",
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Tensor | tuple[Tensor, ...]:
    """Relevance of the inputs for the target, in one line.

    The model is captured once however often this is called.

    Args:
        model: the module to explain, in eval mode.
        inputs: its positional arguments.
        target: see `Explainer.__call__`.
        method: see `Explainer`.
        kwargs: the model's keyword arguments.
        options: further options of `Explainer`.

    Returns:
        See `Explainer.__call__`.
    """
    return Explainer(model, method, **options)(*inputs, target=target, kwargs=kwargs)


def _map(relevance: Tensor | None, x: Tensor, seeds: Tensor) -> Tensor:
    """The map of an input: zero where no relevance came, float64 for a float64 input."""
    dtype = seeds.dtype
    if x.is_floating_point():
        dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    if relevance is None:
        return seeds.new_zeros(seeds.shape[0], *x.shape, dtype=dtype)
    relevance = relevance.to(dtype)
    return relevance.contiguous() if x.is_contiguous() else relevance


def _check_finite(name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).sum())
        raise InputError(
            f"{name}: {count} of {tensor.numel()} values are NaN or infinite; clean them, or pass "
            "nan_policy='propagate'"
        )


def _is_integer(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype is not torch.bool


def _as_list(value: Any) -> list[int | str]:
    return [value] if isinstance(value, (int, str)) else list(value)


def _one_of(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    if value not in allowed or isinstance(value, bool):
        raise InputError(f"{name}: {value!r}; expected one of {', '.join(map(repr, allowed))}")
    return value


def _backend_name(name: str) -> str:
    return "aten" if name == "auto" else name
