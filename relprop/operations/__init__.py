"""Every operation once: how it is computed, what it saves, how relevance goes back through it.

`operation(name)` looks an operation up by its canonical name.  An `Operation` says

- `kind`: the word that composites select it by;
- `carry`: how relevance goes back, in the words of the reference implementation: "linear" (a
  rule), "pass", "movement" (the adjoint of a copying of elements), "norm" (Epsilon on the
  operation's own linear map), "winner" (max pooling), "choice" (the larger of two), "sum",
  "indexed" (sums by index), "bag" (over stretches of rows), "share" (of a norm), "product",
  "normalisation", "recurrent";
- `forward` and `relevance`: the ATen implementation, without autograd.

Relevance has one more leading axis than the value it belongs to: the targets.  That of an operation
with several values, such as an LSTM's output and last states, is `Parts`.

Imports `graph`, `rules` and what is below them.
"""

from relprop.operations import (  # noqa: F401 (each registers its operations)
    bag,
    choice,
    indexed,
    linear,
    movement,
    normalise,
    norms,
    packed,
    pointwise,
    pool,
    recurrent,
    resample,
)
from relprop.operations.base import Operation, Parts, Step, operation, registered

__all__ = ["Operation", "Parts", "Step", "operation", "registered"]
