"""Mutants that no test can tell from the source, each with the reason."""

from __future__ import annotations

_SHAPE = "only the number of axes of a folded parameter's shape is read, not its size"
_MASK = "also asks the library for a gradient that is then dropped: the result is the same"

ARGUED: dict[str, str] = {
    "maps:Conv.adjoint:flag: False → True": _MASK,
    "maps:Conv.adjoint:flag: False → True (2)": _MASK,
    "rewrite:canonical:dropped statement: graph.prune() → pass (3)": (
        "Plan.make prunes the graph again, to the explained output"
    ),
    "rewrite:_is_identity:dropped condition: bool(node.args) and "
    "isinstance(node.args[0], Ref) → bool(node.args)": (
        "an identity's first argument is always a value of the graph"
    ),
    "fold:_from_batch_norm:constant: 0 → 1": _SHAPE,
    "fold:_from_batch_norm:constant: 0 → 1 (2)": _SHAPE,
    "inplace:rectify:dropped factor: replace(source.options['call'], rectified=True) → "
    "replace(source.options['call'])": (
        "tells the backend that the rectified z has no negative sign, which saves a pass over "
        "memory; where z is 0 the relevance is 0, whatever the stabilizer's sign"
    ),
    "backends/forms/layer:Layer:flag: False → True": (
        "the ATen backend, which alone makes layers, always gives the flag"
    ),
    "layers/choice:taken:index: 2 → 3": "maximum and minimum have two arguments",
    "fold:_fold_after:dropped statement: "
    "_reread(readers, norm.args[0], norm.name, layer.name) → pass": (
        "readers are looked up by name for norms alone, and those before this one are done; "
        "their number, which later folds ask for, is the same"
    ),
    "layers/packed:_Moved.origin:sign: -1 → 1": (
        "the numbers are flattened before use, so that a unit axis may stay"
    ),
    "backends/forms/joint:_layers:flag: False → True": (
        "the pixels' layer is asked for a box, which looks at no sign of its input"
    ),
    "backends/blockwise:<module>:constant: 20 → 21": (
        "how large a block is: another size gives the same sums"
    ),
    "layers/pool:Winner.forward:comparison: within <= torch.iinfo(torch.int32).max → "
    "within < torch.iinfo(torch.int32).max": (
        "differs for 2^31 - 1 positions alone; wider indices hold them too"
    ),
    "recurrent/naive:_product:dropped sign: gate.abs() → gate": "a gate is a sigmoid, never < 0",
    "recurrent/tape:_joined:condition: a is None or b is None → a is None and b is None": (
        "a layer has both biases or neither"
    ),
    "layers/pool:Winner.forward:branch: indices.int() if short else indices → indices.int()": (
        "differs for 2^31 positions and more alone, 8 GiB a sample"
    ),
    "backends/forms/output:AlphaBetaForm.relevance:dropped factor: "
    "divide(r, positive, rule.epsilon, si…=1, scale=scales[0], out=pair.first) → "
    "divide(r, positive, rule.epsilon, scale=scales[0], out=pair.first)": (
        "a sum of positive contributions has no other sign; that of 0 is 1 as well"
    ),
    "recurrent/oracle:relevance_of_samples:swap: c0 → h0 (2)": "both states are of one type",
    "analysis:_is_open:branch: node.args[1:] if node.op == 'dense_map' else () → node.args[1:]": (
        "asks for products more often, and finds none"
    ),
}
