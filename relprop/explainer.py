"""The public face: `Explainer`, and `explain` in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from relprop import backends, methods
from relprop.capture.call import NAN_POLICIES, Call, check_inputs, neutral_modes, unwrap
from relprop.conservation import StepRecord
from relprop.engine import gradients, run
from relprop.engine.gradients import GradientPlan
from relprop.engine.groups import explain_halves
from relprop.engine.lengths import explain_by_length
from relprop.engine.planner import AnyPlan, Planner, Prepared
from relprop.engine.selection import layer_values
from relprop.engine.shared_forward import SharedForward
from relprop.engine.targets import Starting, squeeze_targets, start_sums
from relprop.errors import InputError, PlanningError, is_out_of_memory
from relprop.explanation import Explanation

__all__ = ["Explainer", "explain"]

_BACKENDS = ("auto", "triton", "aten", "reference")


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
        layers: paths of modules whose relevance `explain` returns too, or of one of their calls
            ("path@1" is the second).
        output: which of several outputs: an index, a key, or a function of what the model returns:
            that picks it, or computes what to explain, such as a region's sum or a difference.
        inputs: which inputs to explain, positions and keywords; None for all floating inputs and
            the token inputs of embeddings.
        shared: inputs that are one for all samples and have no axis of them, such as the edges of
            a graph, by position and keyword; they are not explained.  Those left out by `inputs`
            whose size on that axis is another are found.
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
        shared: Any = (),
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
        self.shared = _as_list(shared)
        self.batch_dim = _one_of("batch_dim", batch_dim, (0, 1))
        self.precision = _one_of("precision", precision, backends.PRECISIONS)
        self.nan_policy = _one_of("nan_policy", nan_policy, NAN_POLICIES)
        self.backend = _backend_name(_one_of("backend", backend, _BACKENDS))
        self.frozen = frozen
        self._planner = Planner(
            self.model,
            self.method,
            output=output,
            inputs=self.inputs,
            backend=self.backend,
            precision=self.precision,
            frozen=frozen,
        )
        if example_inputs is not None:
            example = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
            self._prepare(self._call(example, None))

    @property
    def plan(self) -> AnyPlan:
        """The plan used last: printable.

        Raises:
            PlanningError: nothing has been planned yet.
        """
        plan = self._planner.last
        if plan is None:
            raise PlanningError(
                "Explainer.plan: nothing is planned yet; call the explainer, or construct it with "
                "example_inputs="
            )
        return plan

    def __call__(
        self,
        *inputs: Any,
        target: Any = None,
        start: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        lengths: Any = None,
        shared: Any = (),
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
            shared: further inputs that are one for all samples, see `Explainer`.

        Returns:
            A tensor shaped like the input (a tuple for several), with an axis of K after the batch
            axis for a 2-d target.  Detached; float64 for a float64 input, else float32.

        Raises:
            InputError: an input, target or start is of the wrong shape, type or value.
            CaptureError: the model cannot be captured.
            PlanningError: operations lack a rule; all are listed with their module paths.
        """
        result = self._run(self._call(inputs, kwargs, shared), target, start, lengths, full=False)
        return result.relevance

    def attribute(
        self,
        *inputs: Any,
        target: Any = None,
        return_convergence_delta: bool = False,
        start: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        lengths: Any = None,
        shared: Any = (),
    ) -> Any:
        """Relevance, and if asked the convergence delta: start minus relevance, summed a sample."""
        result = self._run(self._call(inputs, kwargs, shared), target, start, lengths, full=False)
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
        shared: Any = (),
    ) -> Explanation:
        """An `Explanation`: relevance, output, hidden layers, conservation report.

        Without `report` the conservation report stays empty, which saves its sums over every layer.
        """
        call = self._call(inputs, kwargs, shared)
        return self._run(call, target, start, lengths, full=True, report=report)

    def _call(
        self, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None, shared: Any = ()
    ) -> Call:
        labels = [*self.shared, *_as_list(shared)]
        return Call.of(inputs, kwargs, self.batch_dim, self.inputs, labels)

    def _run(
        self,
        call: Call,
        target: Any,
        start: Any,
        lengths: Any,
        full: bool,
        report: bool = False,
    ) -> Explanation:
        with neutral_modes(*call.leaves):
            explained = partial(self._within_memory, full=full, report=report)
            if lengths is None:
                return explained(call, target, start)
            return explain_by_length(self.model, call, target, start, lengths, explained)

    def _within_memory(
        self, call: Call, target: Any, start: Any, full: bool, report: bool
    ) -> Explanation:
        explained = partial(self._explained_call, full=full, report=report)
        if getattr(self.method, "noise", 0.0):  # drawn for a whole batch: halves get other noise
            return explained(call, target, start)
        try:
            return explained(call, target, start)
        except RuntimeError as error:
            if not is_out_of_memory(error) or call.batch < 2:
                raise
        # outside of the handler, whose traceback would keep the failed attempt's tensors alive
        smaller = partial(self._within_memory, full=full, report=report)
        return explain_halves(call, target, start, smaller)

    def _explained_call(
        self,
        call: Call,
        target: Any,
        start: Any,
        full: bool,
        report: bool,
        shared: SharedForward | None = None,
    ) -> Explanation:
        self._check_inputs(call)
        graph, plan, engine, chosen = self._prepare(call)
        values = dict(zip(graph.inputs, call.leaves, strict=True))
        named: dict[str, tuple[str, ...]] = {}
        for path in self.layers:
            named |= layer_values(plan, path, self.model, call)
        begun = self.start if start is None else start
        begin = Starting(target, begun, call, self.nan_policy, plan.graph, plan.output)
        hidden = [name for own in named.values() for name in own]
        wanted = [*chosen, *hidden] if full else chosen
        records: list[StepRecord] = []
        if isinstance(plan, GradientPlan):
            known = shared.differentiable(plan, values, wanted) if shared else None
            output, seeds, found = gradients.attribute(
                plan, self.model, values, begin, wanted, known
            )
        else:
            engine = shared.engine(engine, plan, values, wanted) if shared else engine
            count = call.batch if report else None
            passed = run.forward(plan, engine, self.model, values, batch=count)
            output, seeds = passed.output, begin(passed.output)
            batch = (call.batch, self.batch_dim)
            kept = records if report else None
            found = run.relevance(plan, engine, passed, seeds, wanted, kept, batch)
            for name in set(wanted) - {*found, *values}:
                found[name] = seeds.new_zeros(seeds.shape[0], *passed.shapes[name])
        maps = [_map(found.get(name), values[name], seeds) for name in chosen]
        shown = named if full else {}
        return self._result(call, begin, output, seeds, maps, shown, found, records)

    def _result(
        self,
        call: Call,
        begin: Starting,
        output: Tensor,
        seeds: Tensor,
        maps: list[Tensor],
        named: dict[str, tuple[str, ...]],
        found: dict[str, Tensor],
        records: list[StepRecord],
    ) -> Explanation:
        target, axis = begin.resolved, self.batch_dim
        delta = start_sums(seeds, begin.axis)
        for relevance in maps:
            delta = delta - start_sums(relevance, axis).to(delta)
        shaped = tuple(squeeze_targets(relevance, target, axis) for relevance in maps)
        graph = begin.graph
        parts = {
            path: tuple(
                squeeze_targets(
                    found[name],
                    target,
                    graph.batch_axis(name, found[name].shape[1:], call.batch, axis) or 0,
                )
                for name in names
            )
            for path, names in named.items()
        }
        hidden = {path: own[0] if len(own) == 1 else own for path, own in parts.items()}
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
        check_inputs(call, self.nan_policy)

    def _prepare(self, call: Call) -> Prepared:
        return self._planner.prepare(call)


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


def _as_list(value: Any) -> list[int | str]:
    return [value] if isinstance(value, (int, str)) else list(value)


def _one_of(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    if value not in allowed or isinstance(value, bool):
        raise InputError(f"{name}: {value!r}; expected one of {', '.join(map(repr, allowed))}")
    return value


def _backend_name(name: str) -> str:
    return "aten" if name == "auto" else name
