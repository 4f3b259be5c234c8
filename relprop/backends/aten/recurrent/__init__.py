"""Recurrent layers: `reduced` where signal takes all, `stepwise` for every other option.

Arras et al. 2017, 2019.  Imports what `backends.aten` does.
"""
