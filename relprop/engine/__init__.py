"""Plan and run: what is known of a graph's values, which step gets which rule, forward and back.

Imports `capture`, `composites`, `backends` and what is below them.
"""
