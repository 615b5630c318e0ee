"""Attention backends other than torch's, diffusers' own caches, and models that MACs cannot be counted on."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from helpers import BY_NAME, assert_close, dense_output

from fastdit import TokenMerging, accelerate
from fastdit.pipelines import counter


@pytest.fixture
def math_backend():
    """A function that sets a backend that is not `native`; the process-wide one that diffusers sets too comes back."""
    before, models = _AttentionBackendRegistry._active_backend, []

    def set_on(transformer):
        transformer.set_attention_backend(AttentionBackendName._NATIVE_MATH.value)
        models.append(transformer)

    yield set_on
    for transformer in models:
        transformer.reset_attention_backend()
    _AttentionBackendRegistry.set_active_backend(before)


@pytest.mark.parametrize("scope", ["attention", "block"])
@pytest.mark.parametrize("name", ["wan", "flux"])
def test_another_backend_is_used_and_counted_like_the_native_one(name, scope, math_backend):
    tiny, method = BY_NAME[name], TokenMerging(scope=scope)
    native = tiny.make()
    with accelerate(native, [method]) as handle:
        expected, counts = tiny.call(native), (handle.report.macs_dense, handle.report.macs_executed)
    pipe = tiny.make()
    math_backend(pipe.transformer)
    with accelerate(pipe, [method]) as handle:
        assert_close(tiny.call(pipe), expected)
        report = handle.report
    assert report.methods["token_merging"].backend == "_native_math" and not report.warnings
    assert (report.macs_dense, report.macs_executed) == counts and counts[1] < counts[0]


@pytest.mark.parametrize(
    "method", [TokenMerging(tokens="q"), TokenMerging(tokens="kv"), TokenMerging(proportional=True)], ids=str
)
def test_methods_inside_the_attention_call_refuse_other_backends(method, math_backend):
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    host = type(pipe)
    math_backend(pipe.transformer)
    with pytest.raises(RuntimeError, match=r"token_merging .*backend _native_math .*set_attention_backend\('native'\)"):
        accelerate(pipe, [method])
    assert type(pipe) is host and not pipe.transformer._forward_pre_hooks
    pipe.transformer.set_attention_backend("native")
    with accelerate(pipe, [method]):
        tiny.call(pipe)
        math_backend(pipe.transformer)  # and later, before the run
        with pytest.raises(RuntimeError, match="backend _native_math"):
            tiny.call(pipe)


def test_a_model_that_cannot_be_counted_runs_with_a_warning(monkeypatch):
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    with accelerate(pipe, [TokenMerging()]):
        expected = tiny.call(pipe)

    def fails(*_):
        raise NotImplementedError("no meta kernel for this")

    monkeypatch.setattr(counter, "forward_macs", fails)
    with accelerate(pipe, [TokenMerging()]) as handle:
        assert torch.equal(tiny.call(pipe), expected)
        report = handle.report
    (warning,) = report.warnings  # once, not once a forward
    assert "MACs are not counted" in warning and "no meta kernel for this" in warning
    assert report.macs_dense == report.macs_executed == 0 and report.evaluations == 6
    assert warning in str(report)


@pytest.mark.parametrize("name", ["wan", "flux", "hunyuan_video"])
def test_a_diffusers_cache_is_a_warning(name):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    with accelerate(pipe, [TokenMerging(reuse_blocks=1, reuse_steps=1)]) as handle:
        assert tiny.call(pipe).isfinite().all()
        assert [text for text in handle.report.warnings if "diffusers cache is enabled on transformer" in text]
    pipe.transformer.disable_cache()
    with accelerate(pipe, [TokenMerging()]) as handle:
        tiny.call(pipe)
        assert not handle.report.warnings
    assert torch.equal(tiny.call(pipe), dense_output(name))
