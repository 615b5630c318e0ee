"""Every pair of methods composes at neutral, or is refused with one error that names both."""

from itertools import combinations_with_replacement

import pytest
import torch
from helpers import BY_NAME, dense_output
from methods_table import TABLE
from tiny import TINY

from fastdit import accelerate
from fastdit.methods.base import load_methods

VIDEO = ("wan", "hunyuan_video")  # families with one attention over all frames
OF_NOISE = ("dit", "pixart", "latte")  # families that predict noise, not a velocity
PAIRS = [
    pytest.param(one.method, other.method, id=f"{one}+{other}")
    for first, second in combinations_with_replacement(load_methods(), 2)
    for one in TABLE[first].neutral
    for other in TABLE[second].neutral
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_neutral_pairs_compose_or_are_refused(one, other):
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    host = type(pipe)
    results = []
    for pair in ([one, other], [other, one]):
        try:
            with accelerate(pipe, pair):
                results.append(torch.equal(tiny.call(pipe), dense_output("wan")))
        except ValueError as error:
            assert one.name in str(error) and other.name in str(error) and "\n" not in str(error)
            results.append(None)
        assert type(pipe) is host
    assert results[0] == results[1], "the order of listing matters"
    assert results[0] in (True, None)
    assert torch.equal(tiny.call(pipe), dense_output("wan"))


@pytest.mark.parametrize(
    ("one", "other"),
    [pytest.param(*pair, id=f"{name}-{i}") for name in TABLE for i, pair in enumerate(TABLE[name].clashes)],
)
def test_known_clashes_are_refused_and_leave_nothing(one, other):
    tiny = next(tiny for tiny in TINY if not one.missing(family(tiny)) and not other.missing(family(tiny)))
    pipe = tiny.make()
    with pytest.raises(ValueError, match=rf"{one.name} and {other.name} cannot run together: .+"):
        accelerate(pipe, [one, other])
    assert type(pipe) is type(tiny.make())
    assert torch.equal(tiny.call(pipe), dense_output(tiny.name))


def test_what_is_not_a_method_is_refused():
    pipe = BY_NAME["dit"].make()
    with pytest.raises(ValueError, match=r"list of fastdit methods such as TokenMerging\(\)"):
        accelerate(pipe, ["token_merging"])
    with pytest.raises(ValueError, match="list of fastdit methods"):
        accelerate(pipe, [load_methods()["token_merging"]])


@pytest.mark.parametrize("name", load_methods())
def test_a_need_that_a_family_lacks_is_one_error_naming_both(name):
    lacking = [
        (tiny, setting.method)
        for tiny in BY_NAME.values()
        for setting in TABLE[name].active
        if setting.method.missing(family(tiny))
    ]
    for tiny, method in lacking:
        with pytest.raises(ValueError, match=rf"{method.name} .*{family(tiny).title}.*lacks: .+"):
            accelerate(tiny.make(), [method])
    expected = {
        "block_streaming": set(),
        "dydit": {"latte", "mochi", "flux"},
        "flexdit": {t.name for t in TINY if t.family not in ("dit", "pixart")},
        "linear_proportional_leap": {t.name for t in TINY if t.family in OF_NOISE},
        "radial_attention": {t.name for t in TINY if t.family not in VIDEO},
        "temporal_token_merging": {t.name for t in TINY if t.family not in VIDEO},
        "token_merging": {"mochi"},
    }
    assert {tiny.name for tiny, _ in lacking} == expected[name]


def family(tiny):
    from fastdit.models.base import load_families

    return load_families()[tiny.family]
