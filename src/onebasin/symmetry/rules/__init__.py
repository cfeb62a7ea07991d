"""Which rule stands for which operator: the one visible table.

Names are those of `aten` without overload and without the trailing underscore of in-place forms. An operator that is
not listed but carries torch's own tag `pointwise` or `reduction` follows that rule. Anything else freezes what it
touches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from onebasin.errors import UsageError
from onebasin.symmetry.call import Rule
from onebasin.symmetry.rules import (
    contractions,
    convolution,
    indexing,
    norms,
    pointwise,
    recurrent,
    reductions,
    reshape,
    routing,
    sources,
    spatial,
    sums,
    views,
)

_TABLE: dict[Rule, str] = {
    pointwise.pointwise: """
        contiguous alias detach clone dropout feature_dropout alpha_dropout native_dropout bernoulli
        lift_fresh lift_fresh_copy hardswish zero fill copy __and__ __or__ __xor__ floor_divide nan_to_num where
        masked_fill relu6 _unsafe_masked_fill hardsigmoid gelu silu mish elu celu selu leaky_relu hardtanh softplus
        logsigmoid rrelu threshold softshrink hardshrink lerp addcmul addcdiv isfinite isnan isinf resolve_conj
        resolve_neg rsub multiply divide true_divide subtract absolute negative greater greater_equal less less_equal
        not_equal special_expit special_erf fix fmod remainder isclose polar complex""",
    pointwise.retyped: "to _to_copy type_as",
    pointwise.prelu: "prelu _prelu_kernel",
    pointwise.softmax: "softmax log_softmax _softmax _log_softmax _safe_softmax",
    pointwise.along_order: "cumsum cumprod cummax cummin logcumsumexp flip roll diff",
    pointwise.triangle: "tril triu",
    reductions.reduce: """
        mean sum nansum prod amax amin aminmax any all var std var_mean std_mean logsumexp norm linalg_vector_norm
        count_nonzero""",
    reductions.extreme: "max min median nanmedian mode kthvalue",
    reductions.similarity: "cosine_similarity",
    routing.chosen: "argmax argmin topk sort argsort",
    routing.grouped_matmul: "_grouped_mm transformers::grouped_mm_fallback",
    contractions.linear: "linear",
    contractions.matmul: "matmul mm bmm mv dot vdot",
    contractions.inner: "inner",
    contractions.matmul_add: "addmm baddbmm addmv",
    contractions.outer: "outer ger",
    contractions.tensordot: "tensordot",
    contractions.bilinear: "bilinear",
    contractions.distances: "cdist",
    contractions.einsum: "einsum",
    contractions.attention: "scaled_dot_product_attention",
    contractions.embedding: "embedding",
    convolution.convolution: """
        conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d""",
    norms.channel_norm: """
        batch_norm instance_norm native_batch_norm cudnn_batch_norm _native_batch_norm_legit
        _native_batch_norm_legit_no_training""",
    norms.layer_norm: "layer_norm native_layer_norm rms_norm _fused_rms_norm",
    norms.group_norm: "group_norm native_group_norm",
    norms.weight_norm: "_weight_norm _weight_norm_interface",
    reshape.view: """
        view _unsafe_view reshape _reshape_alias view_as reshape_as flatten unflatten squeeze unsqueeze ravel
        _reshape_copy""",
    views.at_least: "atleast_1d atleast_2d atleast_3d",
    views.permute: "permute",
    views.transpose: "transpose swapaxes swapdims t mT numpy_T adjoint",
    views.movedim: "movedim moveaxis",
    views.expand: "expand expand_as broadcast_to",
    views.repeat: "repeat tile",
    views.repeat_interleave: "repeat_interleave",
    views.as_complex: "view_as_complex",
    views.as_real: "view_as_real",
    views.meshgrid: "meshgrid",
    views.pixel_shuffle: "pixel_shuffle",
    views.pixel_unshuffle: "pixel_unshuffle",
    views.channel_shuffle: "channel_shuffle native_channel_shuffle",
    sums.cat: "cat concat concatenate",
    sums.stack: "stack",
    sums.split: "split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk unsafe_split_with_sizes",
    sums.unbind: "unbind",
    sums.select: "select",
    sums.narrow: "slice narrow",
    sums.glu: "glu",
    sums.pad: "pad constant_pad_nd",
    sums.put_slice: "slice_scatter select_scatter",
    spatial.pool: """
        max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d
        avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d
        upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d
        _upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa upsample_trilinear3d reflection_pad1d
        reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d""",
    spatial.grid_sample: "grid_sampler grid_sampler_2d grid_sampler_3d",
    spatial.im2col: "im2col",
    spatial.windows: "unfold",
    indexing.index: "index _unsafe_index",
    indexing.index_select: "index_select",
    indexing.gather: "gather take_along_dim",
    indexing.scatter: "scatter scatter_add scatter_reduce index_add index_copy index_fill",
    indexing.index_put: "index_put _unsafe_index_put",
    indexing.one_hot: "one_hot",
    sources.fill: """
        zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full scalar_tensor empty empty_like
        new_empty empty_strided new_empty_strided""",
    sources.created: """
        arange linspace logspace eye rand rand_like randn randn_like randint randperm normal tril_indices
        triu_indices""",
    recurrent.recurrent: "lstm gru rnn_tanh rnn_relu",
    recurrent.one_step: "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
}

RULES: dict[str, Rule] = {
    name if "::" in name else f"aten::{name}": rule for rule, names in _TABLE.items() for name in names.split()
}


def rule(name: str) -> Callable[[Rule], Rule]:
    """Register a rule for a custom operator: `@onebasin.rule("mylib::scale")` on a function of a `Call`.

    The function unifies the axis terms of the operands (`call.join`), or freezes them (`call.frozen(why)`), and returns
    an `Abstract` tensor; files of this folder show how. What it claims is proved with every spec it takes part in.

    Raises:
        UsageError: the name is not "namespace::operator".
    """
    if name.count("::") != 1:
        raise UsageError(f"a rule for {name!r}", '"namespace::operator"', "name the operator as torch.library does")

    def register(function: Rule) -> Rule:
        RULES[name] = function
        return function

    return register


def find(target: object) -> tuple[str, Rule | None]:
    """Return the bare name of an operator and its rule, or None where there is none."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(target), None
    full = schema.name
    for name in (full, full.removesuffix("_")):
        if name in RULES:
            return name.removeprefix("aten::"), RULES[name]
    tags = getattr(target, "tags", ())
    bare = full.removeprefix("aten::").removesuffix("_")
    if torch.Tag.pointwise in tags:
        return bare, pointwise.pointwise
    if torch.Tag.reduction in tags and "dim" in {argument.name for argument in schema.arguments}:
        return bare, reductions.reduce
    return bare, None
