"""Several networks into one: aligned, then averaged."""

from onebasin.merging.merge import Merge, merge

__all__ = ["Merge", "merge"]
