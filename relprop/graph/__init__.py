"""A model as data: its operations in order, their linear maps, the canonical form.

Imports `rules` and `errors`.
"""

from relprop.graph.nodes import CAPTURE_LOCK, Graph, Node, Ref, Source, map_refs, refs_of

__all__ = ["CAPTURE_LOCK", "Graph", "Node", "Ref", "Source", "map_refs", "refs_of"]
