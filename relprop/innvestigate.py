"""iNNvestigate's analyzers under the name that people look for: see `relprop.integrations`."""

from relprop.integrations.innvestigate import ANALYZERS, Analyzer, create_analyzer

__all__ = ["ANALYZERS", "Analyzer", "create_analyzer"]
