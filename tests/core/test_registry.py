import sys

import pytest

from fastdit.core.registry import Registry, discover


@pytest.fixture
def reducers():
    registry = Registry("reducer")
    for name in ("prune", "bipartite", "pool"):
        registry.register(name, object())
    return registry


def test_names_come_sorted_with_their_items(reducers):
    assert list(reducers) == ["bipartite", "pool", "prune"] and len(reducers) == 3
    assert [(name, reducers[name]) for name in reducers] == list(reducers.items())
    assert "pool" in reducers and "poool" not in reducers


def test_unknown_name_is_one_line_with_the_nearest(reducers):
    with pytest.raises(ValueError) as error:
        reducers["poool"]
    assert str(error.value) == "unknown reducer 'poool'; known: bipartite, pool, prune (did you mean 'pool'?)"
    with pytest.raises(ValueError, match=r"known: bipartite, pool, prune$"):
        reducers["xyz"]
    with pytest.raises(ValueError, match="known: none"):
        Registry("metric")["fid"]


def test_a_name_stands_for_one_item(reducers):
    item = reducers["pool"]
    assert reducers.register("pool", item) is item
    with pytest.raises(ValueError, match="reducer 'pool' is registered already"):
        reducers.register("pool", object())
    assert reducers["pool"] is item


def test_discover_imports_every_file_of_a_package(tmp_path, monkeypatch):
    package = tmp_path / "found_by_discover"
    package.mkdir()
    (package / "__init__.py").write_text("seen = []\n")
    for name in ("b", "a"):
        (package / f"{name}.py").write_text(f"from found_by_discover import seen\nseen.append({name!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert discover("found_by_discover") == ["found_by_discover.a", "found_by_discover.b"]
    assert sys.modules["found_by_discover"].seen == ["a", "b"]
    for name in ("found_by_discover", "found_by_discover.a", "found_by_discover.b"):
        monkeypatch.delitem(sys.modules, name)
