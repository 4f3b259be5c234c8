"""The naive loop over samples and targets: what the batched implementation must equal."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from relprop.backends.reference.recurrent import naive_relevance
from relprop.graph.recurrent import Direction, Layout
from relprop.rules import Recurrent

__all__ = ["relevance_of_samples"]


def relevance_of_samples(
    layout: Layout,
    directions: Sequence[Direction],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    relevance: Sequence[Tensor | None],
    rule: Recurrent,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Relevance of the input and of the initial states, `[K, *shape]` each.

    Args:
        layout, directions, x, h0, c0, rule, lengths: as in `recurrent.naive_relevance`.
        relevance: of the output, the last hidden states, the last cells, `[K, *shape]` or None.
    """
    sequences = x if layout.batch_first else x.transpose(0, 1)
    targets = next(r.shape[0] for r in relevance if r is not None)
    r_x = sequences.new_zeros(targets, *sequences.shape)
    r_h0 = h0.new_zeros(targets, *h0.shape)
    r_c0 = None if c0 is None else c0.new_zeros(targets, *c0.shape)
    width = layout.ways * directions[0].w_hh.shape[1]
    for sample, sequence in enumerate(sequences):
        steps = len(sequence) if lengths is None else int(lengths[sample])
        for target in range(targets):
            r_out, r_last, r_cells = (None if r is None else r[target] for r in relevance)
            if r_out is None:
                own = sequence.new_zeros(steps, width)
            else:
                own = (r_out[sample] if layout.batch_first else r_out[:, sample])[:steps]
            found = naive_relevance(
                layout,
                directions,
                sequence[:steps],
                h0[:, sample],
                None if c0 is None else c0[:, sample],
                (own, _of(r_last, sample), _of(r_cells, sample)),
                rule,
            )
            r_x[target, sample, :steps], r_h0[target, :, sample] = found[:2]
            if r_c0 is not None and found[2] is not None:
                r_c0[target, :, sample] = found[2]
    return (r_x if layout.batch_first else r_x.transpose(1, 2)), r_h0, r_c0


def _of(r: Tensor | None, sample: int) -> Tensor | None:
    return None if r is None else r[:, sample]
