"""Reading values inside a model: its graph, traced once per shape of batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.utils import _pytree

from onebasin.errors import DiscoveryError, UsageError
from onebasin.functional import inputs_of
from onebasin.symmetry.export import Exported, Outputs, export

T = TypeVar("T")
CORRECT_BATCHES = "give batches whose inputs have the number, shapes and dtypes that the model takes"


class Readers(Generic[T]):
    """What reads a model for batches of each shape, made when the shape is first seen.

    Args:
        model: the architecture; it is left alone.
        outputs: as it was given to `permutation_spec`.
        make: a traced model -> its reader.
    """

    def __init__(self, model: nn.Module, outputs: Outputs, make: Callable[[Exported], T]) -> None:
        self.model, self.outputs, self.make = model, outputs, make
        self._made: dict[Any, T] = {}

    def __call__(self, batch: Any) -> tuple[T, list[Any]]:
        """Return the reader for a batch, and the inputs in it, flat.

        Raises:
            UsageError: the model rejects the batch.
        """
        args, kwargs = inputs_of(batch)
        flat = _pytree.tree_leaves((args, kwargs))
        key = tuple((tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x for x in flat)
        if key not in self._made:
            try:
                exported = export(self.model, kwargs or args, self.outputs, remedy=CORRECT_BATCHES)
            except DiscoveryError as error:
                raise UsageError(f"a batch on which {error.got}", "batches that the model takes", error.do) from error
            self._made[key] = self.make(exported)
        return self._made[key], flat
