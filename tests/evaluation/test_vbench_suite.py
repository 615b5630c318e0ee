"""The prompt suite: found without importing vbench, checked, extended, and turned into items."""

import json
import sys

import pytest
from vbench_stand_in import CASE, SUITE, write_suite

from fastdit.evaluation.vbench import suite as suites
from fastdit.evaluation.vbench.dimensions import DIMENSIONS, parse
from fastdit.evaluation.vbench.items import count_of, items_of
from fastdit.evaluation.vbench.suite import PromptSuite


@pytest.fixture
def suite(tmp_path):
    return PromptSuite.read(write_suite(tmp_path))


def test_prompts_by_dimension_and_doubled_ones_merged(suite):
    assert len(suite.prompts) == 8
    assert [prompt.prompt for prompt in suite.of(["overall_consistency"])] == CASE
    assert suite.prompts[6].dimensions == (
        "overall_consistency",
        "aesthetic_quality",
        "imaging_quality",
        "appearance_style",
    )
    assert len(suite.of(["appearance_style", "overall_consistency", "imaging_quality"])) == 2
    assert suite.dimensions == [name for name in DIMENSIONS if any(name in entry["dimension"] for entry in SUITE)]
    with pytest.raises(ValueError, match="has no prompts for human_action, object_class"):
        suite.of(["human_action", "color", "object_class"])


def test_found_in_the_installed_package_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "vbench"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemError('vbench was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(suites.VARIABLE, raising=False)
    with pytest.raises(ValueError, match=r"give --prompts VBench_full_info\.json .* --python"):
        PromptSuite.find()
    path = write_suite(package)
    assert PromptSuite.find().path == path and "vbench" not in sys.modules


def test_given_before_variable_before_installed(tmp_path, monkeypatch):
    paths = []
    for name in ("given", "variable", "python", "installed"):
        (tmp_path / name).mkdir()
        paths.append(write_suite(tmp_path / name))
    given, variable, python, installed = paths
    monkeypatch.setenv(suites.VARIABLE, str(variable))
    monkeypatch.setattr(suites, "installed", lambda: installed)
    assert PromptSuite.find(given, python).path == given
    assert PromptSuite.find(None, python).path == variable
    monkeypatch.delenv(suites.VARIABLE)
    assert PromptSuite.find(None, python).path == python
    assert PromptSuite.find().path == installed


ENTRY = {"prompt_en": "x", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "no VBench prompt file"),
        ([], "no VBench prompt file"),
        (["x"], "entry 1: an object with prompt_en and dimension is expected, got str"),
        ([ENTRY, {**ENTRY, "prompt_en": " "}], "entry 2: prompt_en must be a text"),
        ([{"dimension": ["color"]}], "entry 1: prompt_en must be a text"),
        ([{**ENTRY, "dimension": "color"}], "dimension must be a list"),
        ([{**ENTRY, "dimension": ["i2v_subject"]}], "no dimension 'i2v_subject'"),
        ([{**ENTRY, "auxiliary_info": {}}], "color needs auxiliary_info.color"),
        ([{**ENTRY, "auxiliary_info": None}], "color needs auxiliary_info.color"),
    ],
)
def test_schema_is_checked(tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        PromptSuite.read(write_suite(tmp_path, entries))


def test_absent_and_torn_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json does not exist"):
        PromptSuite.find(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('[{"prompt_en"')
    with pytest.raises(ValueError, match=r"torn\.json is no JSON"):
        PromptSuite.find(tmp_path / "torn.json")


def test_extended_texts_are_drawn_and_short_ones_name(tmp_path, suite):
    lines = tmp_path / "long.txt"
    lines.write_text("\n".join(f"long text {number}" for number in range(len(SUITE))) + "\n")
    longer = PromptSuite.read(suite.path, lines)
    items, _ = items_of(longer, ["appearance_style"], samples=1)
    assert [(item.prompt, item.name) for item in items] == [("long text 6", "a paper boat-0")]  # its first entry's text
    as_json = tmp_path / "long.json"
    as_json.write_text(json.dumps({entry["prompt_en"]: entry["prompt_en"] + "!" for entry in SUITE}))
    assert PromptSuite.read(suite.path, as_json).prompts[4].text == "harbour!"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "one\ntwo", "has 2 lines and the suite 9 prompts"),
        ("a.txt", "x\n" * 4 + "\n" + "x\n" * 4, "line 5 is empty"),
        ("a.json", '{"a fox runs": "x"}', "no text for 7 prompts, the first is 'a lamp on a desk"),
        ("a.json", "[]", "an object of prompt"),
        ("a.txt", None, "cannot be read"),
    ],
)
def test_extended_files_that_do_not_fit(tmp_path, suite, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        PromptSuite.read(suite.path, tmp_path / name)


def test_items_make_each_video_once_with_its_index_as_seed(suite):
    items, warnings = items_of(suite, suite.dimensions)
    assert len(items) == 6 * 5 + 2 * 25 and not warnings
    assert len({item.name for item in items}) == len({item.index for item in items}) == len(items)
    assert all(item.name == f"{item.prompt}-{item.seed}" for item in items)
    assert [item.seed for item in items] == sorted(item.seed for item in items), "every prompt's first video first"
    assert [item.index for item in items] == sorted(item.index for item in items)
    assert count_of(suite, "temporal_flickering") == 50 and count_of(suite, "color") == 5


def test_an_index_stands_for_one_video_whatever_is_asked_for(suite):
    known = {}
    for dimensions in (["color"], ["scene", "temporal_flickering"], suite.dimensions):
        for samples in (1, 5, 7):
            for item in items_of(suite, dimensions, samples)[0]:
                assert known.setdefault(item.index, item) == item


def test_samples_of_flickering(suite):
    assert [len(items_of(suite, ["temporal_flickering"], *more)[0]) for more in ((), (1,), (5, 5), (1, 3))] == [
        50,
        10,
        10,
        6,
    ]
    assert len(items_of(suite, ["color"], 2, 9)[0]) == 2
    for more, name in (((0,), "--samples"), ((5, 101), "--flickering-samples")):
        with pytest.raises(ValueError, match=f"{name} must lie between 1 and 100"):
            items_of(suite, ["color"], *more)


def test_names_that_cannot_be_are_counted_among_the_asked(tmp_path):
    entries = [*SUITE, {"prompt_en": "cat/dog", "dimension": ["human_action"]}]
    suite = PromptSuite.read(write_suite(tmp_path, entries))
    items, warnings = items_of(suite, ["human_action"], 1)
    assert items[0].prompt == "cat/dog" and "/" not in items[0].name
    assert warnings[0].startswith("1 of 1 prompts cannot name a file")
    assert not items_of(suite, ["color"])[1]
    assert "1 of 2 prompts" in items_of(suite, ["overall_consistency"], folds_case=True)[1][0]


def test_dimension_lists():
    assert parse("scene, color") == ["color", "scene"]
    assert parse("all") == list(DIMENSIONS) and len(DIMENSIONS) == 16
    assert len(parse("quality")) == 7 and len(parse("semantic,subject_consistency")) == 10
    with pytest.raises(ValueError, match=r"no dimension 'sceen'; use all, quality.*did you mean 'scene'"):
        parse("color,sceen")
    with pytest.raises(ValueError, match="no dimension ''"):
        parse("")
