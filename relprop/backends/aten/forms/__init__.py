"""How the ATen backend evaluates each rule: the cheapest exact form known.

A form is a pair: `forward` gives the layer's output and the tensors that `relevance` needs.
`GeneralForm` walks the groups of any rule; the others are derived in their docstrings.

Imports `backends.aten.products` and what is below it.
"""
