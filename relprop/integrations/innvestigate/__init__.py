"""iNNvestigate's analyzers by their names, with its conventions, on PyTorch models.

    analyzer = relprop.create_analyzer("lrp.sequential_preset_a", model)
    analysis = analyzer.analyze(images)

The names and conventions are those of iNNvestigate 2.1.2 (Alber et al. 2019); nothing of it is
imported.
"""

from relprop.integrations.innvestigate.analyzers import Analyzer
from relprop.integrations.innvestigate.names import ANALYZERS, create_analyzer

__all__ = ["ANALYZERS", "Analyzer", "create_analyzer"]
