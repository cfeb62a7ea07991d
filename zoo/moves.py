"""What random programs are made of: operations that move, cut, join, repeat and look up."""

from __future__ import annotations

from math import prod

from zoo.writer import Stuck, Value, Writer, even, listed, often

# ---- views ----


@often(8)
def split_axis(w: Writer, x: Value) -> str:
    dim = w.dim(x, 4)
    first = w.divisor(x.shape[dim])
    shape = [*x.shape[:dim], first, x.shape[dim] // first, *x.shape[dim + 1 :]]
    return f"{x.name}.reshape({listed(shape)})"


@often(6)
def merge_axes(w: Writer, x: Value) -> str:
    if x.rank < 2:
        raise Stuck("one axis")
    dim = w.random.randrange(x.rank - 1)
    return f"{x.name}.flatten({dim}, {dim + 1})"


@often(2)
def regroup(w: Writer, x: Value) -> str:
    """A reshape that may cut across axes."""
    total = prod(x.shape[1:])
    first = w.divisor(total)
    return f"{x.name}.reshape({x.shape[0]}, {first}, {total // first})"


@often(8)
def permute(w: Writer, x: Value) -> str:
    order = list(range(x.rank))
    w.random.shuffle(order)
    return f"{x.name}.permute({listed(order)})"


@often(3)
def other_moves(w: Writer, x: Value) -> str:
    one, two = w.random.randrange(x.rank), w.random.randrange(x.rank)
    kind = w.random.choice(("movedim", "swapaxes", "transpose"))
    return f"{x.name}.{kind}({one}, {two})" if w.random.random() < 0.8 else f"{x.name}.mT"


@often(2)
def fused_heads(w: Writer, x: Value) -> str:
    """One projection viewed as (parts, heads, units), its parts used differently."""
    parts, heads, units = w.random.choice((2, 3)), w.random.choice((2, 3)), w.random.choice((2, 3))
    order = [("parts", parts), ("heads", heads), ("units", units)]
    if w.random.random() < 0.5:
        order = [order[1], order[0], order[2]]
    fused = w.line(f"{w.layer(f'nn.Linear({x.shape[-1]}, {parts * heads * units})')}({x.name})")
    view = w.line(f"{fused.name}.view({listed([*x.shape[:-1], *(size for _, size in order)])})")
    dim = x.rank - 1 + [name for name, _ in order].index("parts")
    picked = [w.line(f"{view.name}.select({dim}, {number})") for number in range(parts)]
    return f"torch.tanh({picked[0].name}) * {picked[1].name}" + (f" + {picked[2].name}" if parts == 3 else "")


# ---- sums ----


@often(6)
def cut_axis(w: Writer, x: Value) -> str:
    dim = w.dim(x)
    sizes = w.cuts(x.shape[dim])
    parts = [w.line(f"{x.name}.split({sizes}, {dim})[{number}]") for number in range(len(sizes))]
    kind = w.random.random()
    if kind < 0.4:
        return f"torch.cat([{', '.join(part.name for part in reversed(parts))}], {dim})"
    if kind < 0.7:
        return f"torch.cat([torch.relu({parts[0].name}), {', '.join(part.name for part in parts[1:])}], {dim})"
    return f"{parts[0].name} * {parts[1].name}.mean({dim}, keepdim=True)"


@often(4)
def halves(w: Writer, x: Value) -> str:
    dim = even(w, x)
    if w.random.random() < 0.5:
        return f"F.glu({x.name}, {dim})"
    one, two = (w.line(f"{x.name}.chunk(2, {dim})[{number}]") for number in (0, 1))
    return f"torch.cat([-{two.name}, {one.name}], {dim})" if w.random.random() < 0.5 else f"{one.name} + {two.name}"


@often(4)
def join(w: Writer, x: Value) -> str:
    dim = w.random.randrange(x.rank)

    def rest(y: Value) -> tuple[int, ...]:
        return y.shape[:dim] + y.shape[dim + 1 :]

    others = [y for y in w.values if y.rank == x.rank and rest(y) == rest(x)]
    return f"torch.cat([{x.name}, {w.random.choice(others).name}], {dim})"


@often(3)
def stack(w: Writer, x: Value) -> str:
    others = [y for y in w.values if y.shape == x.shape]
    dim = w.random.randint(0, x.rank)
    stacked = w.line(f"torch.stack([{x.name}, {w.random.choice(others).name}, torch.tanh({x.name})], {dim})")
    return w.random.choice((stacked.name, f"{stacked.name}.select({dim}, 1)", f"{stacked.name}.mean({dim})"))


@often(3)
def unbind(w: Writer, x: Value) -> str:
    dim = w.dim(x)
    taken = w.random.sample(range(x.shape[dim]), 2)
    one, two = (w.line(f"{x.name}.unbind({dim})[{number}]") for number in taken)
    return w.random.choice((f"{one.name} * {two.name}", f"torch.stack([{one.name}, {two.name}], {dim})"))


@often(4)
def take_run(w: Writer, x: Value) -> str:
    dim = w.dim(x)
    start = w.random.randrange(x.shape[dim])
    stop = w.random.randint(start + 1, x.shape[dim])
    kind = w.random.random()
    before = ":, " * dim
    if kind < 0.5:
        return f"{x.name}[{before}{start}:{stop}]"
    if kind < 0.7:
        return f"{x.name}.select({dim}, {start})"
    if kind < 0.85:
        return f"{x.name}.index_select({dim}, torch.arange({start}, {stop}))"
    return f"{x.name}[{before}torch.arange({start}, {stop})]"


@often(2)
def stepped(w: Writer, x: Value) -> str:
    dim = w.dim(x)
    start, step = w.random.choice((0, 1)), w.random.choice((2, 3))
    return f"{x.name}[{':, ' * dim}{start}::{step}]"


@often(3)
def interleaved(w: Writer, x: Value) -> str:
    """The halves of an axis take turns, or what took turns is parted again."""
    dim = even(w, x)
    half = x.shape[dim] // 2
    before = ":, " * dim
    kind = w.random.random()
    if kind < 0.4:
        view = w.line(f"{x.name}.reshape({listed([*x.shape[:dim], 2, half, *x.shape[dim + 1 :]])})")
        return f"{view.name}.transpose({dim}, {dim + 1}).flatten({dim}, {dim + 1})"
    one, two = (w.line(f"{x.name}[{before}{start}::2]") for start in (0, 1))
    if kind < 0.7:
        return f"torch.cat([{one.name}, torch.tanh({two.name})], {dim})"
    return f"torch.stack([-{two.name}, {one.name}], {dim + 1}).flatten({dim}, {dim + 1})"


@often(2)
def add_to_run(w: Writer, x: Value) -> str:
    """A part of a copy is added to in place."""
    dim = w.dim(x)
    cut = w.random.randrange(1, x.shape[dim])
    copy = w.line(f"{x.name}.clone()")
    shape = [cut if number == dim else size for number, size in enumerate(x.shape)]
    scale = w.parameter(*(size if w.random.random() < 0.6 else 1 for size in shape))
    w.line(f"{copy.name}.narrow({dim}, 0, {cut}).mul_({scale})")
    return copy.name


@often(2)
def write_run(w: Writer, x: Value) -> str:
    """A part of a fresh tensor is written over."""
    dim = w.dim(x)
    cut = w.random.randrange(1, x.shape[dim])
    fresh = w.line(w.random.choice((f"torch.zeros_like({x.name})", f"{x.name}.clone()")))
    source = w.random.choice([y for y in w.values if y.shape == x.shape and y != fresh])
    before = ":, " * dim
    w.line(f"{fresh.name}[{before}:{cut}].copy_({source.name}[{before}:{cut}])")
    return fresh.name


@often(2)
def scatter_run(w: Writer, x: Value) -> str:
    dim = w.dim(x)
    cut = w.random.randrange(1, x.shape[dim])
    source = w.random.choice([y for y in w.values if y.shape == x.shape])
    run = f"{source.name}.narrow({dim}, 0, {cut})"
    return f"torch.slice_scatter({x.name}, {run}, {dim}, 0, {cut})"


@often(3)
def pad(w: Writer, x: Value) -> str:
    amounts = [w.random.choice((0, 0, 1, 2)) for _ in range(2 * w.random.randint(1, min(x.rank, 2)))]
    mode = w.random.choice(("'constant'",) * 3 + ("'replicate'", "'circular'"))
    return f"F.pad({x.name}, {amounts}, mode={mode})"


# ---- repeats ----


@often(3)
def repeat(w: Writer, x: Value) -> str:
    dim, count = w.random.randrange(x.rank), w.random.choice((2, 3))
    if w.random.random() < 0.5:
        return f"{x.name}.repeat_interleave({count}, {dim})"
    return f"{x.name}.repeat({listed(count if number == dim else 1 for number in range(x.rank))})"


@often(3)
def expand(w: Writer, x: Value) -> str:
    dim, count = w.random.randint(0, x.rank), w.random.choice((2, 3))
    shape = [*x.shape[:dim], count, *x.shape[dim:]]
    return f"{x.name}.unsqueeze({dim}).expand({listed(shape)})"


# ---- look-ups ----


@often(3)
def top_k(w: Writer, x: Value) -> str:
    """The largest few, their positions, and what stands there."""
    dim = w.dim(x)
    count = w.random.randint(1, x.shape[dim])
    kind = w.random.random()
    if kind < 0.3:
        return f"{x.name}.topk({count}, {dim}).values"
    if kind < 0.4:
        return f"{x.name}.argmax({dim}, keepdim=True) * 0.1"
    if kind < 0.5:
        return f"{x.name}.sort({dim}).values"
    if kind < 0.7:
        return f"{x.name}.gather({dim}, {x.name}.topk({count}, {dim}).indices)"
    same = [y for y in w.values if y.shape == x.shape]
    return f"{w.random.choice(same).name}.gather({dim}, {x.name}.argsort({dim}))"


@often(2)
def chosen_rows(w: Writer, x: Value) -> str:
    """Rows of a table that a top-1 choice picks, as a mixture of experts does."""
    dim = w.dim(x)
    number = f"{x.name}.argmax({dim})"
    kind = w.random.random()
    if kind < 0.4:
        return f"F.embedding({number}, {w.parameter(x.shape[dim], w.width())})"
    if kind < 0.8:
        return f"{w.parameter(x.shape[dim], w.width())}[{number}]"
    return f"F.one_hot({number}, {x.shape[dim]}).to({x.name}) @ {w.parameter(x.shape[dim], w.width())}"


@often(1)
def routed(w: Writer, x: Value) -> str:
    """A layer of experts: a router, the best two of four, their outputs weighted."""
    experts, width = 4, w.width()
    flat = w.line(f"{x.name}.reshape(-1, {x.shape[-1]})")
    logits = w.line(f"{w.layer(f'nn.Linear({x.shape[-1]}, {experts})')}({flat.name})")
    weights = w.parameter(experts, x.shape[-1], width)
    chosen = f"{logits.name}.topk(2, -1)"
    out = w.line(f"torch.einsum('ti,tkio->tko', {flat.name}, {weights}[{chosen}.indices])")
    return f"({out.name} * {chosen}.values.softmax(-1).unsqueeze(-1)).sum(1)"


@often(1)
def fixed_look_up(w: Writer, x: Value) -> str:
    dim = w.dim(x)
    numbers = [w.random.randrange(x.shape[dim]) for _ in range(w.random.randint(1, 4))]
    return f"{x.name}.index_select({dim}, torch.tensor({numbers}))"
