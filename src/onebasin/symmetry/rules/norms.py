"""Normalisation layers. Each declares its statistics, which a nested group must respect."""

from __future__ import annotations

from torch import Tensor

from onebasin.symmetry.abstract import Abstract
from onebasin.symmetry.axes import Term, product, split_product
from onebasin.symmetry.call import Call, Value


def channel_norm(call: Call) -> Value:
    """batch_norm and instance_norm: weight, bias and running statistics stand on the channel axis."""
    x = call.tensor("input")
    labels = list(range(len(x.axes)))
    names = ("weight", "bias", "running_mean", "running_var")
    vectors = [(value.axes, [1]) for value in map(call.optional, names) if value is not None]
    axes = call.join([(x.axes, labels), *vectors], labels)
    call.hidden(axes[:2])
    return _with_statistics(call, axes, axes[1:2])


def layer_norm(call: Call) -> Value:
    """layer_norm and rms_norm over the last axes."""
    x = call.tensor("input")
    count = len(call["normalized_shape"])
    labels = list(range(len(x.axes)))
    vectors = [(value.axes, labels[-count:]) for value in map(call.optional, ("weight", "bias")) if value is not None]
    axes = call.join([(x.axes, labels), *vectors], labels)
    call.hidden(axes[:-count])
    return _with_statistics(call, axes, axes[:-count])


def group_norm(call: Call) -> Value:
    """Channels are a grid of groups and channels within; statistics per group."""
    x = call.tensor("input")
    groups = int(call["num_groups"] if "num_groups" in call.arguments else call["group"])
    batch, channels, *places = x.axes
    grid = split_product(channels, groups, channels.size // groups)
    labels = ["batch", "group", "in", *range(len(places))]
    vectors = [
        (split_product(value.axes[0], groups, channels.size // groups), ["group", "in"])
        for value in map(call.optional, ("weight", "bias"))
        if value is not None
    ]
    axes = call.join([((batch, *grid, *places), labels), *vectors], labels)
    call.hidden(axes[:2])
    return _with_statistics(call, (batch, product(axes[1:3]), *axes[3:]), axes[:2])


def weight_norm(call: Call) -> Value:
    """w = g v / |v|: the norm runs over all axes of v but `dim`."""
    v, g = call.tensor("v"), call.tensor("g")
    labels = range(len(v.axes))
    axes = call.join([(v.axes, labels), (g.axes, labels)], labels)
    call.hidden([axes[call.dim(len(axes))]])
    return _with_statistics(call, axes, g.axes)


def _with_statistics(call: Call, axes: tuple[Term, ...], statistics: tuple[Term, ...]) -> Value:
    if isinstance(call.node.meta.get("val"), Tensor):
        return Abstract(axes)
    found = [Abstract(axes)]
    for shape in call.shapes[1:]:
        terms = [term for term in statistics if term.size in shape]
        fits = tuple(term.size for term in terms) == shape
        found.append(Abstract(tuple(terms) if fits else tuple(call.fixed(n, "statistics of a norm") for n in shape)))
    return found
