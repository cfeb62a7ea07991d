"""Several networks into one: aligned, then averaged."""

from onebasin.merging.many import merge_many
from onebasin.merging.merge import Merge, merge
from onebasin.merging.repair import repair

__all__ = ["Merge", "merge", "merge_many", "repair"]
