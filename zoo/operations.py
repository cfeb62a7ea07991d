"""What random programs are made of: operations that compute. Each writes one expression on a value at hand."""

from __future__ import annotations

from zoo.writer import Stuck, Value, Writer, fits, listed, often, ranked

# ---- contractions ----


@often(12)
def linear(w: Writer, x: Value) -> str:
    bias = w.random.choice(("", ", bias=False"))
    return f"{w.layer(f'nn.Linear({x.shape[-1]}, {w.width()}{bias})')}({x.name})"


@often(3)
def shared_linear(w: Writer, x: Value) -> str:
    layer = w.layer(f"nn.Linear({x.shape[-1]}, {x.shape[-1]})")
    return f"{layer}(torch.tanh({layer}({x.name})))"


@often(2)
def tied_transpose(w: Writer, x: Value) -> str:
    weight = w.parameter(w.width(), x.shape[-1])
    return f"F.linear(F.linear({x.name}, {weight}).relu(), {weight}.t())"


@often(3)
def parameter_matmul(w: Writer, x: Value) -> str:
    return f"{x.name} @ {w.parameter(x.shape[-1], w.width())}"


@often(2)
def batched_matmul(w: Writer, x: Value) -> str:
    ranked(x, 3, 4)
    return f"{x.name} @ {w.parameter(*x.shape[-3:-2], x.shape[-1], w.width())}"


@often(2)
def gram(w: Writer, x: Value) -> str:
    return f"{x.name} @ {x.name}.transpose(-1, -2) / {x.shape[-1]}"


@often(2)
def product_of_two(w: Writer, x: Value) -> str:
    fitting = [y for y in w.values if y.rank == x.rank and y.shape[:-2] == x.shape[:-2] and x.rank > 1]
    found = [y for y in fitting if y.shape[-2] == x.shape[-1]]
    if not found:
        raise Stuck("nothing to multiply with")
    return f"torch.matmul({x.name}, {w.random.choice(found).name})"


@often(3)
def einsum(w: Writer, x: Value) -> str:
    letters = "abcdef"[: x.rank]
    gone, kept = w.dim(x), w.dim(x)
    weight = w.parameter(x.shape[gone], w.width())
    out = letters.replace(letters[gone], "z")
    if gone != kept and w.random.random() < 0.5:  # the kept letter stands on the weight too
        weight = w.parameter(x.shape[kept], x.shape[gone], w.width())
        return f"torch.einsum('{letters},{letters[kept]}{letters[gone]}z->{out}', {x.name}, {weight})"
    return f"torch.einsum('{letters},{letters[gone]}z->{out}', {x.name}, {weight})"


@often(1)
def dotted_einsum(w: Writer, x: Value) -> str:
    return f"torch.einsum('...i,ij->...j', {x.name}, {w.parameter(x.shape[-1], w.width())})"


@often(1)
def inner(w: Writer, x: Value) -> str:
    return f"torch.inner({x.name}, {w.parameter(w.width(), x.shape[-1])})"


@often(2)
def low_rank(w: Writer, x: Value) -> str:
    """A weight that is a sum of a matrix and a product of two."""
    out, rank = w.width(), w.random.choice((2, 3))
    weight, up, down = w.parameter(out, x.shape[-1]), w.parameter(out, rank), w.parameter(rank, x.shape[-1])
    return f"F.linear({x.name}, {weight} + {up} @ {down})"


@often(1)
def standardised(w: Writer, x: Value) -> str:
    """A weight of zero mean and unit variance in each of its rows."""
    weight = w.parameter(w.width(), x.shape[-1])
    return f"F.linear({x.name}, ({weight} - {weight}.mean(1, keepdim=True)) / ({weight}.std(1, keepdim=True) + 1))"


@often(1)
def bilinear(w: Writer, x: Value) -> str:
    return f"{w.layer(f'nn.Bilinear({x.shape[-1]}, {x.shape[-1]}, {w.width()})')}({x.name}, {x.name})"


@often(1)
def tensordot(w: Writer, x: Value) -> str:
    dim = w.dim(x)
    return f"torch.tensordot({x.name}, {w.parameter(x.shape[dim], w.width())}, ([{dim}], [0]))"


@often(1)
def added_product(w: Writer, x: Value) -> str:
    ranked(x, 2)
    width = w.width()
    return f"torch.addmm({w.parameter(width)}, {x.name}, {w.parameter(x.shape[1], width)})"


# ---- convolutions ----


@often(5)
def conv2d(w: Writer, x: Value) -> str:
    ranked(x, 4)
    groups = w.random.choice([g for g in (1, 1, 2, 3, x.shape[1]) if x.shape[1] % g == 0])
    out = groups * w.random.choice((1, 2, 3, 4))
    kernel, padding = w.random.choice(((1, 0), (1, 0), (3, 1), (2, 0)))
    layer = w.layer(f"nn.Conv2d({x.shape[1]}, {out}, {kernel}, padding={padding}, groups={groups})")
    return f"{layer}({x.name})"


@often(3)
def conv1d(w: Writer, x: Value) -> str:
    ranked(x, 3)
    groups = w.random.choice([g for g in (1, 1, 2, x.shape[1]) if x.shape[1] % g == 0])
    kernel, padding, dilation = w.random.choice(((1, 0, 1), (3, 1, 1), (3, 2, 2)))
    out = groups * w.random.choice((1, 2, 3))
    settings = f"{kernel}, padding={padding}, dilation={dilation}, groups={groups}"
    return f"{w.layer(f'nn.Conv1d({x.shape[1]}, {out}, {settings})')}({x.name})"


@often(2)
def transposed_conv(w: Writer, x: Value) -> str:
    ranked(x, 4)
    groups = w.random.choice([g for g in (1, 2, 3) if x.shape[1] % g == 0])
    out = groups * w.random.choice((1, 2, 3))
    return f"{w.layer(f'nn.ConvTranspose2d({x.shape[1]}, {out}, 2, stride=2, groups={groups})')}({x.name})"


# ---- norms ----


@often(3)
def layer_norm(w: Writer, x: Value) -> str:
    count = w.random.choice((1, 1, 2)) if x.rank > 2 else 1
    kind = w.random.choice(("nn.LayerNorm", "nn.RMSNorm"))
    return f"{w.layer(f'{kind}({list(x.shape[-count:])})')}({x.name})"


@often(2)
def batch_norm(w: Writer, x: Value) -> str:
    ranked(x, 2, 3, 4)
    return f"{w.layer(f'nn.BatchNorm{max(x.rank - 2, 1)}d({x.shape[1]})')}({x.name})"


@often(3)
def group_norm(w: Writer, x: Value) -> str:
    ranked(x, 2, 3, 4)
    groups = w.random.choice([g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0])
    return f"{w.layer(f'nn.GroupNorm({groups}, {x.shape[1]})')}({x.name})"


@often(1)
def instance_norm(w: Writer, x: Value) -> str:
    ranked(x, 4)
    return f"{w.layer(f'nn.InstanceNorm2d({x.shape[1]}, affine=True)')}({x.name})"


@often(2)
def hand_norm(w: Writer, x: Value) -> str:
    dim = w.dim(x)
    return f"{x.name} * torch.rsqrt({x.name}.square().mean({dim}, keepdim=True) + 0.1)"


@often(1)
def unit_length(w: Writer, x: Value) -> str:
    return f"F.normalize({x.name}, dim={w.dim(x)})"


# ---- element by element ----


@often(8)
def activation(w: Writer, x: Value) -> str:
    kind = w.random.choice(("relu", "tanh", "sigmoid", "silu", "gelu", "elu", "softplus", "leaky_relu", "hardswish"))
    return f"F.{kind}({x.name})"


@often(2)
def prelu(w: Writer, x: Value) -> str:
    return f"{w.layer(f'nn.PReLU({x.shape[1] if x.rank > 1 else 1})')}({x.name})"


@often(4)
def scale(w: Writer, x: Value) -> str:
    count = w.random.randint(1, x.rank)
    shape = [size if w.random.random() < 0.7 else 1 for size in x.shape[-count:]]
    return f"{x.name} {w.random.choice('*+-')} {w.parameter(*shape)}"


@often(8)
def combine(w: Writer, x: Value) -> str:
    """Two values that broadcast to the shape of the longer."""
    fitting = [y for y in w.values if y.rank <= x.rank and fits(y.shape, x.shape[x.rank - y.rank :])]
    return f"{x.name} {w.random.choice('++*')} {w.random.choice(fitting).name}"


@often(2)
def in_place(w: Writer, x: Value) -> str:
    copy = w.line(f"{x.name}.clone()")
    return f"{copy.name}.{w.random.choice(('relu_()', f'add_({x.name})', 'mul_(0.7)', 'tanh_()'))}"


@often(2)
def choice_of_two(w: Writer, x: Value) -> str:
    fitting = [y for y in w.values if y.rank <= x.rank and fits(y.shape, x.shape[x.rank - y.rank :])]
    return f"torch.where({x.name} > 0, {w.random.choice(fitting).name}, {x.name} * 0.3)"


@often(1)
def mask(w: Writer, x: Value) -> str:
    ranked(x, 2, 3, 4)
    mask = f"torch.ones({listed(x.shape[-2:])}).tril().bool()"
    return f"{x.name}.masked_fill({mask}, 0.5)"


@often(4)
def softmax(w: Writer, x: Value) -> str:
    return f"{w.random.choice(('F.softmax', 'F.log_softmax'))}({x.name}, {w.dim(x)})"


# ---- reductions and order ----


@often(4)
def reduction(w: Writer, x: Value) -> str:
    kind = w.random.choice(("mean", "sum", "amax", "std", "logsumexp", "norm"))
    dim = w.dim(x) if kind == "std" else w.random.randrange(x.rank)
    keep = w.random.choice(("", ", keepdim=True"))
    if x.rank < 2 and not keep:
        raise Stuck("nothing would be left")
    if kind == "norm":
        return f"torch.linalg.vector_norm({x.name}, dim={dim}{keep})"
    return f"{x.name}.{kind}({dim}{keep})"


@often(1)
def extreme(w: Writer, x: Value) -> str:
    return f"{x.name}.{w.random.choice(('max', 'min', 'median', 'mode'))}({w.dim(x)}, keepdim=True)[0]"


@often(2)
def along_order(w: Writer, x: Value) -> str:
    dim = w.dim(x)
    kind = w.random.choice(("cumsum({})", "flip({})", "roll(1, {})", "diff(dim={})", "unfold({}, 2, 1)"))
    return f"{x.name}.{kind.format(dim)}"


@often(1)
def triangle(w: Writer, x: Value) -> str:
    return f"{x.name}.{w.random.choice(('tril', 'triu'))}()"


# ---- spatial ----


@often(3)
def pool(w: Writer, x: Value) -> str:
    ranked(x, 4)
    means = ("avg_pool2d({}, 2)", "max_pool2d({}, 2)", "adaptive_avg_pool2d({}, 1)", "adaptive_max_pool2d({}, 1)")
    others = ("interpolate({}, scale_factor=2)", "interpolate({}, size=(3, 3), mode='bilinear')", "unfold({}, 2)")
    return "F." + w.random.choice(means + others).format(x.name)


@often(2)
def shuffle(w: Writer, x: Value) -> str:
    ranked(x, 4)
    groups = w.divisor(x.shape[1])
    kinds = (
        f"F.channel_shuffle({x.name}, {groups})",
        f"F.pixel_shuffle({x.name}, 2)",
        f"F.pixel_unshuffle({x.name}, 2)",
    )
    return w.random.choice(kinds)


# ---- composites ----


@often(4)
def attention(w: Writer, x: Value) -> str:
    ranked(x, 3)
    kv, copies, units = w.random.choice((1, 2, 3)), w.random.choice((1, 1, 2)), w.random.choice((2, 3))
    batch, length, width = x.shape

    def heads(count: int) -> str:
        layer = w.layer(f"nn.Linear({width}, {count * units})")
        return w.line(f"{layer}({x.name}).view({batch}, {length}, {count}, {units}).transpose(1, 2)").name

    settings = w.random.choice(("", ", is_causal=True")) + (", enable_gqa=True" if copies > 1 else "")
    out = w.line(f"F.scaled_dot_product_attention({heads(kv * copies)}, {heads(kv)}, {heads(kv)}{settings})")
    return f"{out.name}.transpose(1, 2).flatten(2)"


@often(2)
def self_attention(w: Writer, x: Value) -> str:
    ranked(x, 2, 3)
    return f"F.scaled_dot_product_attention({x.name}, {x.name}, {x.name})"


@often(2)
def rotary(w: Writer, x: Value) -> str:
    """Positions turn pairs of units, a half apart; a part of the units may be left out."""
    ranked(x, 3)
    if x.shape[2] % 4:
        raise Stuck("no pairs")
    turned = w.random.choice((x.shape[2], x.shape[2] // 2))
    angles = f"torch.outer(torch.arange({x.shape[1]}.0), 0.5 ** torch.arange({turned // 2}.0)).repeat(1, 2)"
    head = w.line(f"{x.name}[..., :{turned}]")
    half = w.line(f"torch.cat([-{head.name}[..., {turned // 2}:], {head.name}[..., :{turned // 2}]], -1)")
    out = f"{head.name} * ({angles}).cos() + {half.name} * ({angles}).sin()"
    return f"torch.cat([{out}, {x.name}[..., {turned}:]], -1)"


@often(2)
def biased_attention(w: Writer, x: Value) -> str:
    """Attention with a learnt bias: one for all heads, one for each, or one for each pair of positions too."""
    ranked(x, 3)
    heads = w.divisor(x.shape[2])
    batch, length, width = x.shape
    shape = w.random.choice(((length, length), (heads, 1, length), (heads, length, length), (1, 1, length)))
    split = w.line(f"{x.name}.view({batch}, {length}, {heads}, {width // heads}).transpose(1, 2)").name
    keys = w.line(f"{w.layer(f'nn.Linear({width // heads}, {width // heads})')}({split})").name
    scores = w.line(f"F.softmax({split} @ {keys}.transpose(-1, -2) + {w.parameter(*shape)}, -1)").name
    return f"({scores} @ {split}).transpose(1, 2).flatten(2)"


@often(2)
def multihead(w: Writer, x: Value) -> str:
    ranked(x, 3)
    heads = w.random.choice([count for count in (1, 2, 3) if x.shape[-1] % count == 0])
    layer = w.layer(f"nn.MultiheadAttention({x.shape[-1]}, {heads}, batch_first=True)")
    return f"{layer}({x.name}, {x.name}, {x.name}, need_weights={w.random.choice((True, False))})[0]"


@often(2)
def recurrent(w: Writer, x: Value) -> str:
    ranked(x, 3)
    kind, width = w.random.choice(("nn.RNN", "nn.GRU", "nn.LSTM")), w.random.choice((2, 3, 4))
    two = w.random.random() < 0.4
    settings = ", bidirectional=True" * two + ", num_layers=2" * (w.random.random() < 0.3)
    states = 1 + two + (1 + two) * ("num_layers" in settings)
    layer = w.layer(f"{kind}({x.shape[-1]}, {width}, batch_first=True{settings})")
    if kind == "nn.LSTM" or w.random.random() < 0.6:
        return f"{layer}({x.name})[{w.random.choice(('0', '1') if kind != 'nn.LSTM' else ('0', '1][0', '1][1'))}]"
    start = w.parameter(states, 1, width)
    return f"{layer}({x.name}, {start}.expand({states}, {x.shape[0]}, {width}).contiguous())[0]"


@often(1)
def cell(w: Writer, x: Value) -> str:
    ranked(x, 2)
    kind = w.random.choice(("nn.GRUCell", "nn.RNNCell"))
    layer = w.layer(f"{kind}({x.shape[1]}, {x.shape[1]})")
    return f"{layer}({x.name}, {layer}({x.name}))"


@often(1)
def weight_norm(w: Writer, x: Value) -> str:
    layer = f"nn.utils.parametrizations.weight_norm(nn.Linear({x.shape[-1]}, {w.width()}))"
    return f"{w.layer(layer)}({x.name})"
