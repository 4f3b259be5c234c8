"""Mutants that no test can tell from the source, each with the reason."""

from __future__ import annotations

_SHAPE = "only the number of axes of a folded parameter's shape is read, not its size"
_MASK = "also asks the library for a gradient that is then dropped: the result is the same"

ARGUED: dict[str, str] = {
    "relprop/maps.py:Conv.adjoint:flag: False → True": _MASK,
    "relprop/maps.py:Conv.adjoint:flag: False → True (2)": _MASK,
    "relprop/rewrite.py:canonical:dropped statement: graph.prune() → pass (3)": (
        "Plan.make prunes the graph again, to the explained output"
    ),
    "relprop/rewrite.py:_is_identity:dropped condition: bool(node.args) and "
    "isinstance(node.args[0], Ref) → bool(node.args)": (
        "an identity's first argument is always a value of the graph"
    ),
    "relprop/linearised.py:_from_batch_norm:constant: 0 → 1": _SHAPE,
    "relprop/linearised.py:_from_batch_norm:constant: 0 → 1 (2)": _SHAPE,
    "relprop/inplace.py:rectify:dropped factor: replace(source.options['call'], rectified=True) → "
    "replace(source.options['call'])": (
        "tells the backend that the rectified z has no negative sign, which saves a pass over "
        "memory; where z is 0 the relevance is 0, whatever the stabilizer's sign"
    ),
    "relprop/backends/forms/layer.py:Layer:flag: False → True": (
        "the ATen backend, which alone makes layers, always gives the flag"
    ),
    "relprop/gates.py:_written_out:comparison: i < len(node.args) → i <= len(node.args)": (
        "an addition has two arguments at least"
    ),
    "relprop/layers/choice.py:taken:index: 2 → 3": "maximum and minimum have two arguments",
    "relprop/gates.py:_is_statistic:dropped term: _SCALAR_STEPS | _MOVED → _SCALAR_STEPS": (
        "_computed_from has already said yes to gates that are moved"
    ),
    "relprop/fold.py:_fold_after:dropped statement: "
    "_reread(readers, norm.args[0], norm.name, layer.name) → pass": (
        "readers are looked up by name for norms alone, and those before this one are done; "
        "their number, which later folds ask for, is the same"
    ),
    "relprop/layers/packed.py:_Moved.origin:sign: -1 → 1": (
        "the numbers are flattened before use, so that a unit axis may stay"
    ),
    "relprop/backends/forms/joint.py:_layers:flag: False → True": (
        "the pixels' layer is asked for a box, which looks at no sign of its input"
    ),
    "relprop/backends/blockwise.py:<module>:constant: 20 → 21": (
        "how large a block is: another size gives the same sums"
    ),
    "relprop/layers/winner.py:Winner.forward:comparison: within <= torch.iinfo(torch.int32).max → "
    "within < torch.iinfo(torch.int32).max": (
        "differs for 2^31 - 1 positions alone; wider indices hold them too"
    ),
}
