"""File names: what VBench looks for where it can exist, never out of the folder, never two prompts on one name."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vbench_stand_in import CASE, lookup

from fastdit.evaluation.vbench.names import Names, exact, folds_case, unsafe

SIGNS = st.characters(codec=None, exclude_categories=()) | st.sampled_from("/\\.-~ \0\n\u0301é🎬")
PROMPT = st.one_of(st.text(SIGNS, min_size=1, max_size=20), st.text("aB/🎬", min_size=240, max_size=300))


@settings(max_examples=60, deadline=None)
@given(st.lists(PROMPT, min_size=1, max_size=6, unique=True))
@example(["../../x", "..", "/etc/passwd", "a/b", "a\\b", "\0", ".hidden", "x" * 300, "🎬" * 62, "🎬" * 63])
@example(["a", "a-1", "a-1-0", "\ud800", "e\u0301", "é"])
def test_round_trip_through_the_lookup_of_vbench(prompts):
    names = Names(prompts)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "videos"
        folder.mkdir()
        for index in range(5):
            for prompt in prompts:
                path = folder / f"{names.stem(prompt, index)}.mp4"
                assert path.parent == folder and path.resolve().parent == folder.resolve()
                assert not path.exists(), "two prompts share a name"
                path.touch()
        assert len(os.listdir(folder)) == 5 * len(prompts)
        assert [path.name for path in Path(temporary).iterdir()] == ["videos"]
        for prompt in prompts:
            found = lookup(folder, prompt)
            assert found == ([] if prompt in names.other else [exact(prompt, index) for index in range(5)])
    assert set(names.other) >= {prompt for prompt in prompts if unsafe(prompt)}
    assert len(names.warnings()) == bool(names.other)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("cat/dog", "it holds '/'"),
        ("cat\\dog", "it holds '\\\\'"),
        ("cat\0", "control character"),
        ("a\nb", "control character"),
        ("\udcff", "control character"),
        ("..", "begins with a dot"),
        ("x" * 249, "it has 249 bytes, a file name at most 255"),
        ("é" * 125, "it has 250 bytes"),
    ],
)
def test_what_cannot_name_a_file_is_counted_with_its_reason(prompt, reason):
    names = Names(["a cat", prompt])
    assert reason in names.other[prompt] and list(names.other) == [prompt]
    assert "1 of 2 prompts cannot name a file" in names.warnings()[0]
    assert not names.warnings(["a cat"])
    stem = names.stem(prompt, 24)
    assert "~" in stem and len(stem.encode()) < 150 and stem == Names([prompt]).stem(prompt, 24)


def test_the_longest_name_that_fits_is_kept(tmp_path):
    prompt = "x" * 248
    assert Names([prompt]).stem(prompt, 24) == f"{prompt}-24"
    (tmp_path / exact(prompt, 24)).touch()


def test_prompts_that_differ_by_case_alone():
    assert not Names(CASE).other
    folded = Names(CASE, folds_case=True)
    assert list(folded.other) == CASE[1:] and folded.stem(CASE[0], 0) == "a paper boat-0"
    assert folded.stem(CASE[1], 0).casefold() != folded.stem(CASE[0], 0).casefold()
    assert "takes its name for that of 'a paper boat'" in folded.other[CASE[1]]


def test_prompts_that_differ_by_composition_alone_never_share_a_name():
    names = Names(["caf\u00e9", "cafe\u0301"])
    assert list(names.other) == ["cafe\u0301"]


def test_a_prompt_that_spells_anothers_safe_name():
    stolen = Names(["a/b"]).stem("a/b", 0).removesuffix("-0")
    names = Names([stolen, "a/b"])
    assert names.stem(stolen, 0) == f"{stolen}-0" and names.stem("a/b", 0) != names.stem(stolen, 0)


def test_the_file_system_is_asked(tmp_path):
    (tmp_path / "a").touch()
    assert folds_case(tmp_path) == (tmp_path / "A").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert not folds_case(tmp_path / "absent")
