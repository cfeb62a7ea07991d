"""Statistics of batch norm, recomputed exactly for given weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from onebasin.errors import UsageError, no_batches
from onebasin.functional import Predict, eval_mode, inputs_of, with_params
from onebasin.moments import ChannelMoments
from onebasin.params import TOO_NARROW, Params, check_finite, check_measured
from onebasin.progress import Progress, silent

Streams = Mapping[nn.Module, ChannelMoments]
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


def recompute_batchnorm(
    model: nn.Module, params: Mapping[str, Tensor], batches: Iterable[Any], progress: Progress = silent
) -> Params:
    """Return `params` with the statistics of every batch norm replaced by those of its inputs over `batches`.

    The running statistics of a merged network belong to neither parent: averaged activations vary less than those of
    either, so they must be measured anew. All samples and positions are pooled: `running_mean` becomes their mean,
    `running_var` their variance with n - 1 (as torch stores it), `num_batches_tracked` the number of batches.

    It takes one pass without gradients. During it each batch norm normalises by the statistics of the batch at hand,
    so that what reaches the deeper layers does not depend on statistics that are not known yet; the pooled moments
    equal those of the finished network to the extent that batches are large. Give a few thousand examples or more, in
    batches as large as in training.

    Args:
        model: the architecture. Its weights, buffers and modes are left alone.
        params: the weights, e.g. merged ones. A model without batch norm gets them back unchanged, `batches` unread.
        batches: inputs as the network is meant to see them: tensors, `(inputs, labels)`, or dicts of keyword inputs
            (labels are ignored).
        progress: called after each batch.

    Returns:
        New params; tensors other than the statistics are shared with `params`. A batch norm that the forward pass does
        not reach (an auxiliary head) keeps its statistics.

    Raises:
        ParamsError: `params` are not those of `model`, or statistics are not finite: NaN or infinity in a batch, or an
            overflow in half precision.
        UsageError: no batches, or a batch with a single value per channel, of which there is no variance.

    Source: jordan2023 (reset of batch norm); ainsworth2023, appendix A.3.3.
    Differs: pooled moments instead of a running average of per-batch variances, and all other modules stay in eval mode
    (dropout off), so the result is deterministic and does not depend on `momentum`.
    """
    moments: Streams = {layer: ChannelMoments(layer.num_features) for layer in tracking_layers(model)}
    if not moments:
        return dict(params)
    predict = with_params(model, params)
    streams = {name: moments[layer] for name, layer in model.named_modules() if layer in moments}
    with _recording(model, moments), eval_mode(model, training=moments), torch.no_grad():
        count = _run(predict, batches, streams, progress)
    return _replaced(model, params, moments, count)


def tracking_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of `model` that keep running statistics."""
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]


@contextmanager
def _recording(model: nn.Module, moments: Streams) -> Iterator[None]:
    with ExitStack() as stack:
        for name, layer in model.named_modules():
            if layer in moments:
                stack.callback(layer.register_forward_pre_hook(_record(name, moments), with_kwargs=True).remove)
        yield


def _record(name: str, moments: Streams) -> Hook:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batch = args[0] if args else kwargs["input"]
        if batch.dim() > 1 and batch.numel() <= batch.shape[1]:
            raise UsageError(
                f"a batch gives {name} a single value per channel (shape {tuple(batch.shape)})",
                "at least two, or there is no variance",
                "use larger batches, or leave out the last one (DataLoader(drop_last=True))",
            )
        moments[layer].update(batch)

    return hook


def check_streams(streams: Mapping[str, ChannelMoments], batch: int) -> None:
    """Raise `ParamsError` naming the layers whose statistics are not finite once the batch of this number is in."""
    # A mean that is not finite leaves no deviation from it finite.
    squares = {name: stream.squares for name, stream in streams.items()}
    check_measured(squares, f"statistics that are not finite from batch {batch} on", "layers")


def _run(predict: Predict, batches: Iterable[Any], streams: Mapping[str, ChannelMoments], progress: Progress) -> int:
    done, total = 0, length_hint(batches)
    for done, batch in enumerate(batches, 1):
        args, kwargs = inputs_of(batch)
        predict(*args, **kwargs)
        check_streams(streams, done)
        progress("batch norm statistics", done, total)
    if not done:
        raise no_batches()
    return done


def _replaced(model: nn.Module, params: Mapping[str, Tensor], moments: Streams, batches: int) -> Params:
    result, changed = dict(params), list[str]()
    # A layer used under several names is one entry of `moments`; each of its names gets the same tensors.
    found = {layer: stream.finalize() for layer, stream in moments.items() if stream.count}
    fresh: dict[tuple[nn.Module, str], Tensor] = {}
    for prefix, layer in model.named_modules(remove_duplicate=False):
        if layer not in found:
            continue
        statistics = found[layer]
        values = {"running_mean": statistics.mean, "running_var": statistics.unbiased_variance}
        values["num_batches_tracked"] = torch.tensor(batches)
        for key, value in values.items():
            name = f"{prefix}.{key}" if prefix else key
            if name in params:
                result[name] = fresh.setdefault((layer, key), value.to(params[name]))
                changed.append(name)
    check_finite({name: result[name] for name in changed}, "recomputed statistics of batch norm", TOO_NARROW)
    return result
