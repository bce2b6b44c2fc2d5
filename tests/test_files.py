"""Writing files: all of an output or nothing of it."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest

from data_samples import refused
from leadline.files import filling, kept, replacing, to_json


class Broken(Exception):
    pass


def listing(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_replacing_moves_on_success(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "one" and listing(path.parent) == ["a.txt"]
    with replacing(str(path)) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two" and listing(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, SystemExit])
def test_replacing_leaves_the_old_file_alone_when_interrupted(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and listing(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
def test_replacing_leaves_nothing_where_nothing_was(tmp_path, error):
    with pytest.raises(error), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert listing(tmp_path) == []


def test_outputs_get_the_permissions_that_the_umask_gives(tmp_path):
    old = os.umask(0o027)
    try:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
        with filling(tmp_path / "out") as folder:
            (folder / "b.txt").write_text("x")
        with filling(tmp_path / "out") as folder, replacing(folder / "c.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(old)
    for file in (tmp_path / "a.txt", tmp_path / "out" / "b.txt", tmp_path / "out" / "c.txt"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_filling_moves_all_files_on_success_and_keeps_strangers(tmp_path):
    out = tmp_path / "new" / "out"
    out.mkdir(parents=True)
    (out / "a").write_text("old")
    (out / "stranger").write_text("mine")
    with filling(out) as folder:
        assert folder != out and listing(folder) == []
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")
        assert (out / "a").read_text() == "old"
    assert listing(out) == ["a", "b", "stranger"]
    assert (out / "a").read_text() == "new" and (out / "stranger").read_text() == "mine"


def test_filling_removes_what_is_outdated_by_the_new_files(tmp_path):
    for name in ("a", "b", "stranger"):
        (tmp_path / name).write_text("old")
    (tmp_path / "c").mkdir()
    with pytest.raises(Broken), filling(tmp_path, ("a", "b", "c", "d")):
        raise Broken
    assert listing(tmp_path) == ["a", "b", "c", "stranger"]
    with filling(tmp_path, ("a", "b", "c", "d")) as folder:
        (folder / "a").write_text("new")
    assert listing(tmp_path) == ["a", "c", "stranger"] and (tmp_path / "a").read_text() == "new"


def test_json_has_null_for_what_is_no_number():
    document = {"a": [np.float64("nan"), 1.5, (-np.inf,)], "b": {"c": np.inf, "d": True, "e": None, "ü": "ü</script>"}}
    told = json.loads(to_json(document), parse_constant=pytest.fail)
    assert told == {"a": [None, 1.5, [None]], "b": {"c": None, "d": True, "e": None, "ü": "ü</script>"}}
    assert "\n" not in to_json(document, indent=None)


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, SystemExit])
def test_filling_leaves_the_folder_as_it_was_when_interrupted(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), filling(tmp_path) as folder:
        (folder / "a").write_text("half")
        (folder / "b").write_text("half")
        raise error
    assert listing(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_filling_removes_the_folder_that_it_made_for_nothing(tmp_path):
    with pytest.raises(Broken), filling(tmp_path / "new" / "out"):
        raise Broken
    assert listing(tmp_path) == []


def test_nested_filling_is_one_transaction(tmp_path):
    with pytest.raises(Broken), filling(tmp_path) as outer:
        with filling(outer) as inner:
            (inner / "a").write_text("whole")
        assert listing(outer) == ["a"]
        raise Broken
    assert listing(tmp_path) == []


@pytest.mark.parametrize("write", [filling, lambda folder: replacing(folder / "a.txt")], ids=["filling", "replacing"])
@pytest.mark.parametrize("under", ["file", "file/below", "/proc/nowhere", "/sys/nowhere/below"])
def test_a_folder_that_cannot_be_written_is_refused_by_name(tmp_path, write, under):
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / under  # an absolute path replaces tmp_path
    if under.startswith("/") and not folder.parent.parent.exists():
        pytest.skip("no such file system here")
    with refused("output folder must be writable", str(folder)), write(folder):
        pytest.fail("the block must not run")
    assert listing(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "in the way"


def test_a_folder_in_the_way_is_refused_before_anything_moves(tmp_path):
    (tmp_path / "b").mkdir()
    with refused("no folder may be in the way", str(tmp_path / "b")), filling(tmp_path) as folder:
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")
    assert listing(tmp_path) == ["b"]


@pytest.mark.parametrize("folder", ["new", "made", "a file is in the way", "no home"])
def test_what_is_kept_is_made_once_where_it_can_be_written(folder, tmp_path, monkeypatch):
    home = tmp_path / "cache"
    if folder == "made":
        (home / "leadline").mkdir(parents=True)
    if folder == "a file is in the way":
        home.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which the standard ignores" if folder == "no home" else str(home))
    monkeypatch.chdir(tmp_path)
    made = []
    for _ in range(2):
        assert kept("script-1.js", lambda: made.append(1) or "vega \u2265 5") == "vega ≥ 5"
    assert len(made) == (1 if folder in ("new", "made") else 2)
    assert listing(tmp_path) == (["cache"] if folder != "no home" else [])
