"""A model becomes a graph, exported or recorded, and is left as it was.

Imports `graph` and what is below it.
"""
