"""The version of relprop, in one place: setup.py and `relprop.__version__` read it here."""

__version__ = "0.1.0"
