"""The recurrent-explanation study: its networks, their training, its evaluation.

Imports the public face, `io`, `data` and `models`; only `cli` imports it.
"""
