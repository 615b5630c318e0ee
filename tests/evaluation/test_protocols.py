"""Prompt files, seeds and protocols."""

import json
from collections import Counter

import pytest

from fastdit.evaluation.protocols import PROTOCOLS, class_items, items_of, read_prompts


def test_seeds_count_up_and_prompts_go_round():
    items = items_of(["a", "b"], num=5, seed=10)
    assert [i.index for i in items] == [0, 1, 2, 3, 4] and [i.seed for i in items] == [10, 11, 12, 13, 14]
    assert [i.prompt for i in items] == ["a", "b", "a", "b", "a"]
    assert len(items_of(["a", "b"])) == 2


def test_own_seeds_of_a_file_hold_and_differ_when_a_prompt_comes_again():
    items = items_of(["a", "b"], num=4, seeds=[7, 7])
    assert [i.seed for i in items] == [7, 7, 8, 8]


def test_fifty_pictures_of_each_class():
    protocol = PROTOCOLS["imagenet-50k"]
    items = class_items(protocol.classes, protocol.num)
    assert Counter(Counter(item.label for item in items).values()) == {50: 1000}
    assert len({item.seed for item in items}) == 50_000 and items[1234].prompt == "234"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.txt", "a red apple\n\n  b \r\n", (["a red apple", "b"], None)),
        ("p.json", '["a", "b"]', (["a", "b"], None)),
        ("p.json", '[{"prompt": "a", "seed": 3}, {"prompt": "b/c", "seed": 4}]', (["a", "b/c"], [3, 4])),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n', (["a", "b"], None)),
    ],
)
def test_prompt_files(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert read_prompts(path) == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.txt", b"\n \n", "holds no prompts"),
        ("p.txt", b"\xff\xfe\x00", "is no text file"),
        ("p.json", b"{", "is no JSON file"),
        ("p.json", b"{}", "holds no prompts"),
        ("p.json", b'["a", 3]', "entry 2 has no text `prompt`"),
        ("p.json", b'[{"prompt": "a", "seed": "x"}]', "seed 'x' is no whole number"),
        ("p.json", b'[{"prompt": "a", "seed": 1}, "b"]', "1 of 2 entries have a seed"),
        ("p.json", b'[{"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 1}]', "the same prompt and seed"),
        ("p.json", b'{"annotations": [{"id": 1}]}', "not COCO's captions"),
        ("p.jsonl", b'{"prompt": "a"}\nb\n', "line 2 is no JSON"),
    ],
)
def test_bad_prompt_files_are_named(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_prompts(path)
    assert name in str(caught.value)
    with pytest.raises(ValueError, match="does not exist"):
        read_prompts(tmp_path / f"absent-{name}")


def test_coco_captions_one_a_picture_in_an_order_that_does_not_depend_on_the_file(tmp_path):
    entries = [{"id": i, "image_id": i % 50, "caption": f" caption {i}\n"} for i in range(120)]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"annotations": entries}))
    first, seeds = read_prompts(path)
    assert seeds is None and sorted(first) == sorted(f"caption {i}" for i in range(50))
    path.write_text(json.dumps({"annotations": entries[::-1]}))
    assert read_prompts(path)[0] == first != sorted(first)


def test_an_empty_list_and_an_unknown_protocol():
    with pytest.raises(ValueError, match="list of prompts is empty"):
        items_of([])
    with pytest.raises(ValueError, match="num must be at least 1"):
        items_of(["a"], 0)
    with pytest.raises(ValueError, match="unknown protocol 'coco'; known: coco-30k, imagenet-50k"):
        PROTOCOLS["coco"]
