"""The manifest: whole lines, torn lines, several ranks, other settings, ten thousand samples."""

import os

import pytest

from fastdit.evaluation.manifest import Record, Writer, hash_of, have_files, open_run, read_manifest, read_settings


def record(index, **more):
    base = {"file": f"samples/{index:06d}.png", "prompt": f"p{index}", "seed": index, "settings": "h", "seconds": 0.5}
    return Record(**{"index": index, "macs_dense": 2, "macs_executed": 1, "batch": 0, **base, **more})


def write(folder, rank, *records):
    writer = Writer(folder, rank)
    for each in records:
        writer.append(each)
    writer.close()


def test_ranks_are_merged_by_index_and_come_back_as_written(tmp_path):
    write(tmp_path, 1, record(1, rank=1, prompt='ö "q" \n\\'), record(3, rank=1))
    write(tmp_path, 0, record(0), record(2, label=7, video="samples/000002.mp4"))
    found = read_manifest(tmp_path)
    assert [r.index for r in found] == [0, 1, 2, 3]
    assert found[1] == record(1, rank=1, prompt='ö "q" \n\\') and found[2].label == 7


@pytest.mark.parametrize("cut", [1, 10, -2])
def test_a_torn_last_line_is_left_out_and_then_overwritten(tmp_path, cut):
    write(tmp_path, 0, record(0), record(1))
    path = tmp_path / "manifest.0.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:cut])
    assert [r.index for r in read_manifest(tmp_path)] == [0]
    write(tmp_path, 0, record(1))
    assert path.read_bytes() == first + second


def test_a_broken_line_inside_is_an_error_that_names_it(tmp_path):
    write(tmp_path, 0, record(0))
    path = tmp_path / "manifest.0.jsonl"
    path.write_bytes(b'{"index": 0\n' + path.read_bytes())
    with pytest.raises(ValueError, match=r"manifest\.0\.jsonl, line 1 is no record"):
        read_manifest(tmp_path)


def test_two_lines_of_one_index_must_be_the_same_sample(tmp_path):
    write(tmp_path, 0, record(0, seconds=1.0))
    write(tmp_path, 1, record(0, seconds=2.0))
    assert [r.seconds for r in read_manifest(tmp_path)] == [2.0]
    write(tmp_path, 2, record(0, seed=5))
    with pytest.raises(ValueError, match="index 0 stands for two samples"):
        read_manifest(tmp_path)


def test_a_manifest_of_two_settings_is_refused(tmp_path):
    write(tmp_path, 0, record(0), record(1, settings="other"))
    with pytest.raises(ValueError, match="mixes samples of 2 settings"):
        read_manifest(tmp_path)


def test_only_one_process_writes_a_manifest(tmp_path):
    writer = Writer(tmp_path, 0)
    with pytest.raises(ValueError, match="is being written by another process"):
        Writer(tmp_path, 0)
    writer.close()
    Writer(tmp_path, 0).close()


def test_settings_decide_the_hash_and_a_folder_holds_one_kind(tmp_path):
    settings = {"model": "m", "call": {"steps": 4, "guidance": 2.0}}
    digest = open_run(tmp_path, "a", settings, {})
    assert digest == hash_of({"call": {"guidance": 2.0, "steps": 4}, "model": "m"}) and len(digest) == 12
    assert open_run(tmp_path, "a", settings, {}) == digest
    assert read_settings(tmp_path)["settings"] == settings
    with pytest.raises(ValueError, match="model is 'm' there and 'n' now"):
        open_run(tmp_path, "a", {**settings, "model": "n"}, {})
    with pytest.raises(ValueError, match=r"call\.steps is 4 there and 5 now"):
        open_run(tmp_path, "a", {**settings, "call": {"steps": 5, "guidance": 2.0}}, {})


def test_another_environment_is_a_warning_and_the_number_of_items_is_kept(tmp_path):
    open_run(tmp_path, "a", {"model": "m"}, {"torch": "2.9", "cores": "2"}, range(4))
    write(tmp_path, 0, record(0), record(3))
    with pytest.warns(UserWarning, match=r"torch: 2\.9, now 3\.0"):
        open_run(tmp_path, "a", {"model": "m"}, {"torch": "3.0", "cores": "2"}, [3, 4, 9])
    assert read_settings(tmp_path)["items"] == 4  # 0 and 3 are there, 4 and 9 are wanted


def test_ranks_are_read_by_number(tmp_path):
    for rank in (2, 10):
        write(tmp_path, rank, record(0, rank=rank))
    assert [r.rank for r in read_manifest(tmp_path)] == [10]


def test_a_foreign_or_later_settings_file_is_refused(tmp_path):
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(ValueError, match="is not of a run"):
        read_settings(tmp_path)
    (tmp_path / "settings.json").write_text('{"version": 9, "name": "a", "hash": "b", "settings": {}}')
    with pytest.raises(ValueError, match=r"another version \(9, this one reads 1\)"):
        read_settings(tmp_path)


def test_records_without_their_files_do_not_count(tmp_path):
    (tmp_path / "samples").mkdir()
    records = [record(0), record(1), record(2, video="samples/000002.mp4")]
    for index in (0, 2):
        (tmp_path / records[index].file).write_bytes(b"x")
    (tmp_path / records[1].file).touch()  # empty: a disk that lost what it was given
    assert have_files(tmp_path, records) == [records[0]]


def test_folders_are_listed_once_and_not_asked_file_by_file(tmp_path, monkeypatch):
    (tmp_path / "samples").mkdir()
    records = [record(index) for index in range(300)]
    for each in records:
        (tmp_path / each.file).write_bytes(b"x")
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    assert have_files(tmp_path, records) == records
    assert listed == [tmp_path / "samples"]
