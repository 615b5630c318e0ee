"""Folders appear whole or not at all."""

import pytest

from fastdit.core.files import write_folder


def fill(text, error=None):
    def write(folder):
        (folder / "inner").mkdir()
        (folder / "inner" / "file.txt").write_text(text)
        if error is not None:
            raise error

    return write


@pytest.mark.parametrize("error", [OSError("no space"), ValueError("bad"), KeyboardInterrupt()])
def test_a_folder_is_replaced_when_the_new_one_is_whole(tmp_path, error):
    path = tmp_path / "deep" / "x"
    with pytest.raises(type(error)):
        write_folder(path, fill("none", error))
    assert not list(tmp_path.rglob("*.txt")) and not list((tmp_path / "deep").iterdir())
    write_folder(path, fill("old"))
    (path / "more.txt").write_text("more")
    with pytest.raises(type(error)):
        write_folder(path, fill("half", error))
    assert (path / "inner" / "file.txt").read_text() == "old" and (path / "more.txt").exists()
    write_folder(path, fill("new"))
    assert (path / "inner" / "file.txt").read_text() == "new" and not (path / "more.txt").exists()
    assert [found.name for found in path.parent.iterdir()] == ["x"]


def test_errors_name_the_folder_and_what_is_there_stays(tmp_path):
    with pytest.raises(OSError, match=r"x could not be written: no space"):
        write_folder(tmp_path / "x", fill("", OSError("no space")))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"file could not be written: a file of that name is there"):
        write_folder(tmp_path / "file", fill("new"))
    assert (tmp_path / "file").read_text() == "mine"


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path = write_folder(tmp_path / "x", fill("old"))
    rename = type(path).rename

    def refuse_the_second(self, target):
        if target == path.resolve() and ".old" not in self.name:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", refuse_the_second)
    with pytest.raises(OSError, match="could not be written: no"):
        write_folder(path, fill("new"))
    assert (path / "inner" / "file.txt").read_text() == "old" and [found.name for found in tmp_path.iterdir()] == ["x"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_folder(tmp_path / "link", fill("new"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "inner" / "file.txt").read_text() == "new"
