"""The library's own operations, arranged so that no product is made twice.

Imports `operations` and what is below it.
"""
