"""Recipes: human-readable, versioned JSON that comes back as it was, or says in one line what is wrong with it."""

import json

import pytest
from helpers import BY_NAME

from fastdit import Recipe, TokenMerging, accelerate

RECIPE = Recipe(
    (TokenMerging(density="linear:0.4:0.9", reducer="pool"),), call={"guidance_scale": 3.0}, note="for tests"
)


def test_round_trip(tmp_path):
    file = tmp_path / "recipe.json"
    RECIPE.save(file)
    assert Recipe.load(file) == RECIPE and Recipe.load(str(file)) == RECIPE
    data = json.loads(file.read_text())
    assert data["methods"][0]["density"] == {"kind": "linear", "noise_1": 0.4, "noise_0": 0.9}
    assert file.read_text().count("\n") > 10, "people read these files"
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_a_recipe_is_a_list_of_methods_wherever_methods_are_taken(tmp_path):
    file = tmp_path / "recipe.json"
    RECIPE.save(file)
    tiny, outputs = BY_NAME["wan"], []
    for methods in (RECIPE, file, str(file), list(RECIPE.methods)):
        pipe = tiny.make()
        with accelerate(pipe, methods):
            assert pipe.methods == RECIPE.methods
            outputs.append(tiny.call(pipe, steps=2))
    assert all(out.equal(outputs[0]) for out in outputs)


def test_saving_is_whole_or_not_at_all(tmp_path):
    file = tmp_path / "recipe.json"
    RECIPE.save(file)
    before = file.read_text()
    with pytest.raises(TypeError):
        Recipe((), call={"generator": object()}).save(file)
    assert file.read_text() == before and len(list(tmp_path.iterdir())) == 1


GOOD = RECIPE.to_dict()


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ("{", "not valid JSON"),
        ("\xff", "not valid JSON"),
        ([], "not a fastdit recipe"),
        ({"methods": []}, "'fastdit_recipe'"),
        ({**GOOD, "fastdit_recipe": 2}, "update fastdit"),
        ({**GOOD, "fastdit_recipe": "1"}, "version"),
        ({**GOOD, "fastdit_recipe": 0}, "version"),
        ({**GOOD, "colour": 1}, "colour"),
        ({**GOOD, "methods": {}}, "'methods' must be a list"),
        ({**GOOD, "call": []}, "'call' an object"),
        ({**GOOD, "methods": ["token_merging"]}, "'method'"),
        ({**GOOD, "methods": [{"method": "token_merging", "density": 2}]}, "density"),
        ({**GOOD, "methods": [{"method": "token_merging", "version": 99}]}, "update fastdit"),
        ({**GOOD, "methods": [{"method": "melting"}]}, "unknown method 'melting'"),
    ],
)
def test_damaged_recipes_name_file_and_field(data, names, tmp_path):
    file = tmp_path / "bad.json"
    file.write_bytes(data.encode("latin-1") if isinstance(data, str) else json.dumps(data).encode())
    with pytest.raises(ValueError) as error:
        Recipe.load(file)
    assert names in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file():
    with pytest.raises(ValueError, match=r"recipe nowhere\.json does not exist"):
        Recipe.load("nowhere.json")
