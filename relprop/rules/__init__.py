"""What a rule is: every propagation rule once, as data.

Imports `errors` alone.
"""

from relprop.rules.linear import (
    EPSILON,
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Joint,
    LinearRule,
    Rule,
    WSquare,
    ZBox,
    ZPlus,
)
from relprop.rules.others import Norm, Pass, Product, Recurrent
from relprop.rules.terms import Group, Modifier, Term

__all__ = [
    "EPSILON",
    "AlphaBeta",
    "Epsilon",
    "Flat",
    "Gamma",
    "Group",
    "Joint",
    "LinearRule",
    "Modifier",
    "Norm",
    "Pass",
    "Product",
    "Recurrent",
    "Rule",
    "Term",
    "WSquare",
    "ZBox",
    "ZPlus",
]
