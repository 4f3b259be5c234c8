"""The oracle: naive, readable, by autograd; what everything else is compared with.

Shares no arithmetic with production in either direction: imports data structures of `graph`,
`operations` and `rules`, and only `backends.get` imports it.
"""
