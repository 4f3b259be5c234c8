"""Zennit's interfaces on relprop's engine.

- `Gradient`, `SmoothGrad`, `IntegratedGradients`: its attributors, in its calling form, for any of
  its composites; the model gets no hooks.
- `rules`: its rules as its hooks, on relprop's products, for code that works with hooks; `hooked`
  puts them into a composite.
- `to_composite`: a composite of Zennit's as one of relprop's.

For Zennit 0.5.1, which is loaded with this module and not before.  See docs/coming-from-zennit.md.
"""

from __future__ import annotations

from relprop.integrations import peer

peer("zennit", "zennit")

from relprop.integrations.zennit import rules  # noqa: E402
from relprop.integrations.zennit.attribution import (  # noqa: E402
    Gradient,
    IntegratedGradients,
    SmoothGrad,
)
from relprop.integrations.zennit.convert import to_composite  # noqa: E402
from relprop.integrations.zennit.reading import hooked, own_rule  # noqa: E402
from relprop.integrations.zennit.session import canonised  # noqa: E402

__all__ = [
    "Gradient",
    "IntegratedGradients",
    "SmoothGrad",
    "canonised",
    "hooked",
    "own_rule",
    "rules",
    "to_composite",
]
