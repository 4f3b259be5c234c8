"""The figures: one script each, `python -m figures` draws them all."""
