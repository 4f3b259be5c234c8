"""Relevance of recurrent layers: LSTM, GRU, RNN and their cells (Arras et al. 2017, 2019).

`naive` is the plain loop and the oracle, `aten` the batched implementation: `reduced` where signal
takes all, `steps` for every other option.
"""

from relprop.graph.recurrent import Direction, Layout, directions_of, recurrent_rule

__all__ = ["Direction", "Layout", "directions_of", "recurrent_rule"]
