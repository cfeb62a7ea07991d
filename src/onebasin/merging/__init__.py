"""Several networks into one: aligned, then averaged."""

from onebasin.merging.many import merge_many
from onebasin.merging.merge import Merge, merge
from onebasin.merging.repair import repair
from onebasin.merging.universe import merge_universe

__all__ = ["Merge", "merge", "merge_many", "merge_universe", "repair"]
