import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.ops.reducers import REDUCERS, rows_at_density
from fastdit.ops.reduction import Reduction, identity

grids = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))


def slow_reduce(reduction, x):
    """Rows of each group collected one by one."""
    out = []
    for b in range(x.shape[0]):
        assign = reduction.assign[b % reduction.assign.shape[0]].tolist()
        for m in range(reduction.length):
            if reduction.kept is not None:
                out.append(x[b, int(reduction.kept[b % reduction.kept.shape[0], m])])
            else:
                members = [x[b, n] for n in range(len(assign)) if assign[n] == m]
                out.append(sum(members) / len(members))
    return torch.stack(out).view(x.shape[0], reduction.length, *x.shape[2:])


def slow_restore(reduction, y):
    rows = [[y[b, m] for m in reduction.assign[b % reduction.assign.shape[0]].tolist()] for b in range(y.shape[0])]
    return torch.stack([torch.stack(row) for row in rows])


def random_reduction(batch, rows, length, prune, seed):
    """Groups in the order of one representative each, as every reducer numbers them."""
    generator = torch.Generator().manual_seed(seed)
    assign, kept = [], []
    for _ in range(batch):
        picks = torch.randperm(rows, generator=generator)[:length].sort().values
        sample = torch.randint(0, length, (rows,), generator=generator)
        sample[picks] = torch.arange(length)
        assign.append(sample)
        kept.append(picks)
    return Reduction(torch.stack(assign), length, torch.stack(kept) if prune else None)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 12), st.booleans(), st.sampled_from([(), (3,), (2, 3)]))
def test_reduce_and_restore_agree_with_loops(data, batch, rows, prune, trailing):
    shared = data.draw(st.booleans())
    length = data.draw(st.integers(1, rows))
    reduction = random_reduction(1 if shared else batch, rows, length, prune, data.draw(st.integers(0, 99)))
    x = torch.randn(batch, rows, *trailing, dtype=torch.float64)
    y = reduction.reduce(x)
    torch.testing.assert_close(y, slow_reduce(reduction, x))
    assert torch.equal(reduction.restore(y), slow_restore(reduction, y))
    once = reduction.restore(y)
    torch.testing.assert_close(reduction.restore(reduction.reduce(once)), once)  # a projection
    assert reduction.per_sample == (batch > 1 and not shared)


@settings(max_examples=40, deadline=None)
@given(st.data(), grids, st.sampled_from(list(REDUCERS)))
def test_every_reducer_keeps_its_promises(data, grid, name):
    reducer, n = REDUCERS[name], grid[0] * grid[1] * grid[2]
    density = data.draw(st.floats(0.01, 1))
    keep = reducer.rows(density, grid)
    metric = torch.randn(2, n, 4, generator=torch.Generator().manual_seed(n))
    got = reducer.find(metric, keep, grid)
    assert got.length == keep and 1 <= keep <= max(grid[0], rows_at_density(density, grid)) + grid[0]
    assert got.assign.shape[1] == got.rows == n and got.assign.dtype == torch.long
    assert (got.sizes.sum(1) == n).all() and (got.sizes > 0).all()
    assert torch.equal(got.sizes, torch.stack([a.bincount(minlength=keep) for a in got.assign]))
    assert got.reduce(metric).shape == (2, keep, 4) and got.restore(got.reduce(metric)).shape == metric.shape
    if got.per_sample:  # a batch of 2 equals two of 1
        for b in range(2):
            alone = reducer.find(metric[b : b + 1], keep, grid)
            assert torch.equal(alone.assign[0], got.assign[b])


@pytest.mark.parametrize("name", list(REDUCERS))
@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 5, 7), (3, 4, 4)])
def test_density_1_is_the_identity(name, grid):
    reducer, n = REDUCERS[name], grid[0] * grid[1] * grid[2]
    assert reducer.rows(1.0, grid) == n
    got = reducer.find(torch.randn(2, n, 3), n, grid)
    assert torch.equal(got.assign, torch.arange(n).unsqueeze(0)) and got.is_identity and not got.dropped.any()
    x = torch.randn(2, n, 3)
    assert got.reduce(x) is x and got.restore(x) is x


@pytest.mark.parametrize("name", list(REDUCERS))
def test_bad_keep_and_grid_are_refused(name):
    metric = torch.randn(1, 16, 3)
    for keep, grid, message in ((0, (1, 4, 4), "keep=0"), (17, (1, 4, 4), "keep=17"), (4, (1, 4, 5), "pass its grid")):
        with pytest.raises(ValueError, match=message):
            REDUCERS[name].find(metric, keep, grid)


@pytest.mark.parametrize("name", list(REDUCERS))
def test_rows_that_overflowed_do_not_break_the_choice(name):
    metric = torch.randn(2, 64, 3)
    metric[0, 5], metric[1] = torch.inf, torch.nan
    got = REDUCERS[name].find(metric, 16, (1, 8, 8))
    assert got.length == 16 and (got.sizes > 0).all() and (got.sizes.sum(1) == 64).all()


def test_half_precision_accumulates_in_float32():
    reduction = Reduction(torch.zeros(1, 1024, dtype=torch.long), 1)
    x = torch.ones(1, 1024, 2, dtype=torch.bfloat16)  # summed in bfloat16, ones stop adding up at 256
    assert torch.equal(reduction.reduce(x), torch.ones(1, 1, 2, dtype=torch.bfloat16))


def test_one_row_table_meets_a_batch_of_decisions():
    reduction = random_reduction(3, 10, 4, False, 0)
    x = torch.randn(1, 10, 3)
    torch.testing.assert_close(reduction.reduce(x), reduction.reduce(x.expand(3, -1, -1).contiguous()))


def test_gradients_reach_every_averaged_row_and_only_kept_ones():
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    for prune in (False, True):
        reduction = random_reduction(2, 9, 4, prune, 1)
        assert torch.autograd.gradcheck(lambda x, r=reduction: r.restore(r.reduce(x)), x)


def test_dropped_marks_what_pruning_lost():
    pruned, merged = random_reduction(2, 9, 4, True, 1), random_reduction(2, 9, 4, False, 1)
    assert not merged.dropped.any() and (pruned.dropped.sum(1) == 5).all()
    assert not pruned.dropped.gather(1, pruned.kept).any()
    assert not identity(5).dropped.any()


def test_shapes_that_do_not_belong_are_refused():
    reduction = random_reduction(2, 9, 4, False, 1)
    for x in (torch.randn(2, 8, 3), torch.randn(3, 9, 3)):
        with pytest.raises(ValueError, match="expected rows of shape"):
            reduction.reduce(x)
    with pytest.raises(ValueError, match="length"):
        Reduction(torch.zeros(1, 4, dtype=torch.long), 5)
    with pytest.raises(ValueError, match="kept is"):
        Reduction(torch.zeros(1, 4, dtype=torch.long), 2, torch.zeros(1, 3, dtype=torch.long))


def test_caches_made_under_inference_mode_serve_training():
    for name in REDUCERS:
        with torch.inference_mode():
            REDUCERS[name].find(torch.randn(1, 11 * 5, 3), REDUCERS[name].rows(0.5, (1, 11, 5)), (1, 11, 5))
        x = torch.randn(1, 55, 3, requires_grad=True)
        got = REDUCERS[name].find(x, REDUCERS[name].rows(0.5, (1, 11, 5)), (1, 11, 5))
        got.restore(got.reduce(x)).sum().backward()
        assert x.grad is not None
        x.index_select(1, got.assign[0]).sum().backward()  # the fields themselves as well


@pytest.mark.parametrize("name", list(REDUCERS))
@pytest.mark.filterwarnings("ignore:Dynamo detected a call")
def test_traces_as_one_graph(name):
    reducer, grid = REDUCERS[name], (2, 4, 6)
    keep = reducer.rows(0.5, grid)

    def there_and_back(x):
        reduction = reducer.find(x, keep, grid)
        return reduction.restore(reduction.reduce(x))

    x = torch.randn(2, 48, 5)
    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), there_and_back(x))
    ready = reducer.find(x, keep, grid)
    apply = torch.compile(lambda x, r: r.restore(r.reduce(x)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(apply(x, ready), there_and_back(x))


@pytest.mark.parametrize("name", list(REDUCERS))
@pytest.mark.parametrize("density", [0.5, 0.02])
def test_shapes_are_known_on_the_meta_device(name, density):
    """Multiply-adds are counted there, without data."""
    keep = REDUCERS[name].rows(density, (2, 9, 10))
    x = torch.empty(2, 180, 6, device="meta")
    got = REDUCERS[name].find(x, keep, (2, 9, 10))
    assert got.reduce(x).shape == (2, keep, 6) and got.restore(got.reduce(x)).shape == x.shape
    assert got.reduce(x).device.type == "meta" and got.dropped.shape[1] == 180
