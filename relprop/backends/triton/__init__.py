"""Fused kernels: linear, pooling and recurrent layers, residual sums, reductions.

Imports `kernels`, `operations` and what is below them; Triton itself only when it runs.
"""
