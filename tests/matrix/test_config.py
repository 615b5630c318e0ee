"""Methods as data: round trips, the command line, and errors that name the field and the mend."""

import dataclasses
import json

import pytest
from methods_table import TABLE

from fastdit.methods.base import Method, load_methods

METHODS = list(load_methods())
ALL = [
    pytest.param(method, id=f"{name}-{i}")
    for name in METHODS
    for i, method in enumerate(
        (
            load_methods()[name](),
            *(setting.method for setting in TABLE[name].neutral + TABLE[name].active),
            *TABLE[name].falling,
            *TABLE[name].command_lines.values(),
        )
    )
]


@pytest.mark.parametrize("method", ALL)
def test_round_trip_through_json(method):
    data = json.loads(json.dumps(method.to_dict()))
    assert Method.from_dict(data) == method
    assert data["method"] == method.name and data["version"] == method.version
    assert set(data) == {"method", "version", *(field.name for field in dataclasses.fields(method))}
    assert hash(Method.from_dict(data)) == hash(method)


@pytest.mark.parametrize("method", ALL)
def test_round_trip_through_the_command_line(method):
    default, options = type(method)().to_dict(), []
    for key, value in method.to_dict().items():
        if default[key] == value:
            continue
        value = getattr(method, key)
        text = ":".join(map(str, value)) if isinstance(value, tuple) else str(value)
        options.append(f"{key}={text}")
    assert Method.parse(":".join([method.name, ",".join(options)])) == method


@pytest.mark.parametrize(("text", "method"), [pair for name in METHODS for pair in TABLE[name].command_lines.items()])
def test_command_lines(text, method):
    assert Method.parse(text) == method


@pytest.mark.parametrize(("name", "field", "value"), [(name, *bad) for name in METHODS for bad in TABLE[name].bad])
def test_bad_values_name_their_field(name, field, value):
    for make in (load_methods()[name].of, lambda **kw: Method.from_dict({"method": name, **kw})):
        with pytest.raises(ValueError, match=field) as error:
            make(**{field: value})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_unknown_options_and_newer_versions(name):
    cls = load_methods()[name]
    first = dataclasses.fields(cls)[0].name
    with pytest.raises(ValueError, match=rf"{name} has no option 'colour'.*{first}"):
        Method.from_dict({"method": name, "colour": 1})
    with pytest.raises(ValueError, match=rf"{name} has no option 'colour'.*{first}"):
        Method.parse(f"{name}:colour=1")
    with pytest.raises(ValueError, match=r"update fastdit"):
        Method.from_dict({"method": name, "version": cls.version + 1})
    for version in ("new", None, 1.5, 0, True):
        with pytest.raises(ValueError, match="version"):
            Method.from_dict({"method": name, "version": version})
    with pytest.raises(ValueError, match="option=value"):
        Method.parse(f"{name}:{first}")


@pytest.mark.parametrize(
    "data", [{"density": 0.5}, {"method": "token_merge"}, {"method": 3}, "token_merging", None, []]
)
def test_what_is_no_description_of_a_method(data):
    with pytest.raises(ValueError, match=r"token_merging") as error:
        Method.from_dict(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_frozen_and_explain_every_option(name):
    method = load_methods()[name]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method, dataclasses.fields(method)[0].name, 0)
    assert method.summary and type(method).__doc__
    assert all(len(field.metadata.get("help", "")) > 20 for field in dataclasses.fields(method))


def test_an_unknown_method_on_the_command_line_gets_a_hint():
    with pytest.raises(ValueError, match=r"unknown method 'token_merginf'.*did you mean 'token_merging'"):
        Method.parse("token_merginf:density=0.5")
