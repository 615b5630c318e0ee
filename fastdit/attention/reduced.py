"""One attention call on reduced tokens: reduce, call the host's own processor, restore."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdit.attention.swap import call_swapped
from fastdit.attention.tokens import Match, TokenStep, check_maskless, reduce_mask, reduce_rotary, split
from fastdit.core.layout import TokenLayout
from fastdit.models.base import Rotary

Attention = Callable[..., Tensor]


def attend(
    original: Callable[..., Any],
    arguments: dict[str, Any],
    step: TokenStep,
    rotary: Rotary | None,
    describe: Callable[[], str],
) -> Any:
    """Call `original(**arguments)` on reduced tokens and restore its result to all tokens."""
    if not step.cross:
        check_maskless(arguments.get("attention_mask"), step.layout)
    visual = split(arguments["hidden_states"], step.layout)[1]  # (B, N, C)
    match = step.matcher.match(visual)
    if step.side != "both":
        return call_swapped(original, arguments, _one_sided(step, match), describe)

    def call(arguments: dict[str, Any], sample: int | None = None) -> Any:
        if step.proportional:
            return call_swapped(original, arguments, _proportional(step, match, sample), describe)
        return original(**arguments)

    arguments = _reduce_arguments(arguments, step.layout, match)
    tables = None if rotary is None else arguments.get(rotary.argument)
    if tables is None or rotary is None:
        result = call(arguments)
    else:
        pairs = reduce_rotary(tables, rotary.axis, step.layout, match)
        if len(pairs) == 1:
            result = call({**arguments, rotary.argument: pairs[0]})
        else:  # the host's rotary rows have no batch axis: one call per sample
            result = per_sample(call, arguments, rotary.argument, pairs)
    return _restore(result, step.layout, match)


def attend_each(
    original: Callable[..., Any],
    arguments: dict[str, Any],
    steps: Sequence[TokenStep | None],
    rotary: Rotary | None,
    describe: Callable[[], str],
) -> Any:
    """`attend` for samples that reduce to unequal lengths: one by one, each by its own step (None: as it is)."""
    results = []
    for index, step in enumerate(steps):
        own = _sample(arguments, index, len(steps))
        results.append(original(**own) if step is None else attend(original, own, step, rotary, describe))
    return _together(results)


def join(*parts: Tensor) -> Tensor:
    """Concatenate the non-empty parts along the sequence axis 1."""
    parts = tuple(part for part in parts if part.shape[1])
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _reduce_arguments(arguments: dict[str, Any], layout: TokenLayout, match: Match) -> dict[str, Any]:
    """The call's arguments with hidden states and mask reduced (rotary rows are still those of all tokens)."""
    hidden, encoder = arguments["hidden_states"], arguments.get("encoder_hidden_states")
    before, visual, behind = split(hidden, layout)
    sequence = hidden.shape[1] + (0 if encoder is None else encoder.shape[1])
    reduced = {**arguments, "hidden_states": join(before, match.reduction.reduce(visual), behind)}
    if arguments.get("attention_mask") is not None:
        removed = layout.tokens - match.reduction.length
        reduced["attention_mask"] = reduce_mask(arguments["attention_mask"], removed, sequence, layout)
    return reduced


def per_sample(call: Callable[..., Any], arguments: dict[str, Any], rotary: str, pairs: tuple) -> Any:
    """`call(arguments, index)` for each sample with its own rotary pair; results are put together along the batch."""
    results = [call({**_sample(arguments, index, len(pairs)), rotary: pair}, index) for index, pair in enumerate(pairs)]
    return _together(results)


def _sample(arguments: dict[str, Any], index: int, batch: int) -> dict[str, Any]:
    """The arguments of one sample of a batch; what has no batch axis is for all of them."""
    return {
        name: value[index : index + 1] if torch.is_tensor(value) and len(value) == batch else value
        for name, value in arguments.items()
    }


def _together(results: list[Any]) -> Any:
    """The results of single samples, tensors or tuples of them, along the batch."""
    if torch.is_tensor(results[0]):
        return torch.cat(results)
    return tuple(None if part[0] is None else torch.cat(part) for part in zip(*results, strict=True))


def _restore(result: Any, layout: TokenLayout, match: Match) -> Any:
    """All tokens again, in a tensor or in the first entry of a tuple."""
    hidden = result if torch.is_tensor(result) else result[0]
    restored = _on_visual_rows(hidden, layout, match.reduction.length, match.reduction.restore)
    return restored if torch.is_tensor(result) else (restored, *result[1:])


def _on_visual_rows(x: Tensor, layout: TokenLayout, visual: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change` to the `visual` rows of (B, S, ...), keeping the text rows before or behind them."""
    extra = x.shape[1] - visual
    first = extra if layout.text == "first" else 0
    before, rows, behind = x.split([first, visual, extra - first], dim=1)
    return join(before, change(rows), behind)


def _heads(x: Tensor, layout: TokenLayout, visual: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The same on projected (B, H, S, D)."""
    return _on_visual_rows(x.transpose(1, 2), layout, visual, change).transpose(1, 2)


def _one_sided(step: TokenStep, match: Match) -> Attention:
    """Scaled-dot-product attention with only the queries, or only keys and values, reduced."""
    layout, reduction = step.layout, match.reduction

    def queries(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        query = _heads(query, layout, layout.tokens, reduction.reduce)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **kwargs)
        return _heads(out, layout, reduction.length, reduction.restore)

    def keys(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        mask = reduce_mask(attn_mask, layout.tokens - reduction.length, key.shape[2], layout)
        key, value = (_heads(x, layout, layout.tokens, reduction.reduce) for x in (key, value))
        if step.proportional:
            mask = with_log_sizes(mask, key, layout, match)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **kwargs)

    return queries if step.side == "q" else keys


def _proportional(step: TokenStep, match: Match, sample: int | None) -> Attention:
    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        mask = with_log_sizes(attn_mask, key, step.layout, match, sample)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **kwargs)

    return attention


def with_log_sizes(
    mask: Tensor | None, key: Tensor, layout: TokenLayout, match: Match, sample: int | None = None
) -> Tensor:
    """An additive mask with log(group size) on every merged key (ToMe, Bolya et al., 2023, eq. 1).

    `key` is (B, H, S, D) with the visual keys reduced; `sample` picks one sample's sizes. Returns (B or 1, 1, 1, S).
    """
    sizes = match.reduction.sizes  # (B or 1, M)
    sizes = sizes if sample is None or len(sizes) == 1 else sizes[sample : sample + 1]
    extra = key.shape[2] - match.reduction.length
    first = extra if layout.text == "first" else 0
    bias = F.pad(sizes.log().to(key.dtype), (first, extra - first))[:, None, None, :]
    if mask is None:
        return bias
    return torch.where(mask, bias, float("-inf")) if mask.dtype == torch.bool else mask + bias
