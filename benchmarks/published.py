"""The schedule of weight matching as it was published, for comparison: plain, and everything computed anew.

In every sweep each group's gain matrix is summed over all tensors that hold it, with all their other axes put in order,
in float64; the assignment is scipy's, from scratch; sweeps go on until none of the groups has gained anything.
Source: ainsworth2023, Alg. 1. Differs: takes the diagonal of the gains by indexing, not through an n x n identity.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import onebasin as ob
from benchmarks.timing import Phases

Orders = dict[str, Tensor]


def weight_matching(
    spec: ob.PermutationSpec, a: ob.Params, b: ob.Params, phases: Phases, seed: int = 0, max_sweeps: int = 100
) -> tuple[Orders, float, int]:
    """Return the orders, what they are worth, and the number of sweeps; groups are visited as onebasin visits them."""
    a, b = ({name: params[name].double() for name in spec.matched} for params in (a, b))
    generator = torch.Generator().manual_seed(seed)
    orders = {name: torch.arange(size) for name, size in spec.sizes.items()}
    names, sweeps, has_gained = list(orders), 0, True
    while has_gained and sweeps < max_sweeps:
        has_gained, sweeps = False, sweeps + 1
        for number in torch.randperm(len(names), generator=generator).tolist():
            group = names[number]
            gains, rows = gain_matrix(spec, a, b, orders, group, phases), torch.arange(spec.sizes[group])
            with phases.phase("assignment"):
                found = torch.from_numpy(linear_sum_assignment(gains.numpy(), maximize=True)[1])
            has_gained |= bool(gains[rows, found].sum() > gains[rows, orders[group]].sum() + 1e-12)
            orders[group] = found
    with phases.phase("other"):
        value = sum((a[name] * permuted(spec, name, b[name], orders)).sum().item() for name in a)
    return orders, value, sweeps


def gain_matrix(
    spec: ob.PermutationSpec, a: ob.Params, b: ob.Params, orders: Orders, group: str, phases: Phases
) -> Tensor:
    size = spec.sizes[group]
    gains = torch.zeros(size, size, dtype=torch.float64)
    for name, axis in spec.groups[group].axes:
        if name in a:
            with phases.phase("permuting"):
                moved = permuted(spec, name, b[name], orders, but=axis)
                left, right = (tensor.movedim(axis, 0).reshape(size, -1) for tensor in (a[name], moved))
            with phases.phase("products"):
                gains += left @ right.T
    return gains


def permuted(spec: ob.PermutationSpec, name: str, tensor: Tensor, orders: Orders, but: int | None = None) -> Tensor:
    for axis, parts in enumerate(spec.tensors[name]):
        if not isinstance(parts, ob.Leaf):
            raise ValueError(f"axis {axis} of {name} is {parts}: the published code knows one group per axis only")
        if parts.group is not None and axis != but:
            tensor = tensor.index_select(axis, orders[parts.group])
    return tensor
