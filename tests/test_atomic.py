"""Saving that is cut short: by an exception, by a full device, by a kill at any file operation."""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pygpt.errors import UserError
from pygpt.files import atomic

_FILE_OPERATIONS = {
    "open", "write", "flush", "close", "__exit__", "fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "scandir",
}  # fmt: skip


def killed_at(operation: int, work: Callable[[], None]) -> bool:
    """Run work() in a copy of this process that dies before its file operation of this number; whether it died."""
    left = operation

    def count(frame: FrameType, event: str, function: Any) -> None:
        nonlocal left
        if event == "c_call" and function.__name__ in _FILE_OPERATIONS:
            left -= 1
            if left < 0:
                os._exit(17)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork() beside other threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.setprofile(count)
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, 17}, "the work itself failed"
    return status == 17


def write(folder: Path, files: dict[str, str]) -> None:
    with atomic.write_files(folder) as saving:
        for name, text in files.items():
            (saving / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


OLD = {"a": "old a", "b": "old b"}
NEW = {"a": "new a", "b": "new b", "c": "new c"}


def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path) -> None:
    outcomes = []
    for operation in range(1000):
        folder = tmp_path / str(operation)
        write(folder, {**OLD, "user": "keep"})
        died = killed_at(operation, lambda folder=folder: write(folder, NEW))  # type: ignore[misc]
        if died:
            # Somebody else's program sees each file whole, too.
            assert all(text in {f"old {name}", f"new {name}", "keep"} for name, text in read(folder).items())
            for again in range(1000):  # the program that opens the folder next may be killed as well
                if not killed_at(again, lambda folder=folder: atomic.finish(folder)):  # type: ignore[misc]
                    break
        found = read(folder)
        assert found.pop("user") == "keep"
        assert found in (OLD, NEW)
        outcomes.append(found == NEW)
        write(folder, {"a": "third"})
        assert read(folder) == {**found, "a": "third", "user": "keep"}
        assert [path.name for path in folder.iterdir() if path.is_dir()] == []
        if not died:
            break
    assert outcomes == sorted(outcomes)  # first only the old, then only the new
    assert outcomes.count(False) >= 5
    assert outcomes.count(True) >= 5


def test_the_next_save_finishes_the_one_before(tmp_path) -> None:
    for operation in range(1000):
        folder = tmp_path / str(operation)
        write(folder, OLD)
        died = killed_at(operation, lambda folder=folder: write(folder, NEW))  # type: ignore[misc]
        write(folder, {"a": "third"})
        assert read(folder) in ({**OLD, "a": "third"}, {**NEW, "a": "third"})
        if not died:
            break
    assert read(folder) == {**NEW, "a": "third"}


def test_a_killed_first_save_leaves_nothing_to_mistake(tmp_path) -> None:
    for operation in range(1000):
        folder = tmp_path / str(operation)
        died = killed_at(operation, lambda folder=folder: write(folder, NEW))  # type: ignore[misc]
        if folder.exists():
            atomic.finish(folder)
            assert read(folder) in ({}, NEW)
        if not died:
            break
    assert read(folder) == NEW


def test_a_killed_file_is_old_or_new(tmp_path) -> None:
    path = tmp_path / "state"

    def work() -> None:
        with atomic.write_file(path) as file:
            file.write(b"new")

    path.write_bytes(b"old")
    found = []
    for operation in range(100):
        died = killed_at(operation, work)
        found.append(path.read_bytes())
        if not died:
            break
    assert set(found) == {b"old", b"new"}
    assert found == sorted(found, reverse=True)


def test_files_and_folders_are_on_the_disk_before_and_after_a_rename(tmp_path, monkeypatch) -> None:
    """No test can cut the power, so the order of the calls is what is asked for."""
    events: list[tuple[str, str]] = []
    real = {"fsync": os.fsync, "rename": Path.rename, "replace": Path.replace}

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor).st_ino
        events.append(("flush", next(p.name for p in [tmp_path, *tmp_path.rglob("*")] if p.stat().st_ino == found)))
        real["fsync"](descriptor)

    def renaming(how: str) -> Callable[[Path, Path], Path]:
        def rename(path: Path, target: Path) -> Path:
            events.append(("rename", path.name))
            return real[how](path, target)

        return rename

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renaming("rename"))
    monkeypatch.setattr(Path, "replace", renaming("replace"))
    here = tmp_path.name
    with atomic.write_file(tmp_path / "x") as file:
        file.write(b"x")
    assert events == [("flush", ".x.saving"), ("rename", ".x.saving"), ("flush", here)]
    events.clear()
    write(tmp_path, {"a": "new a", "b": "new b"})
    assert sorted(events[:2]) == [("flush", "a"), ("flush", "b")]
    assert events[2:5] == [("flush", ".saving"), ("rename", ".saving"), ("flush", here)]
    assert events[5:] == [("rename", "a"), ("rename", "b"), ("flush", here)]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), UserError("no")])
def test_an_exception_leaves_the_old(tmp_path, error: BaseException) -> None:
    write(tmp_path / "there", OLD)
    for folder in (tmp_path / "there", tmp_path / "fresh"):
        with pytest.raises(type(error)), atomic.write_files(folder) as saving:
            (saving / "a").write_text("new a")
            raise error
    assert read(tmp_path / "there") == OLD
    assert not (tmp_path / "there" / ".saving").exists()
    assert not (tmp_path / "fresh").exists()

    with pytest.raises(type(error)), atomic.write_file(tmp_path / "file") as file:
        file.write(b"new")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_left(tmp_path) -> None:
    write(tmp_path, OLD)
    with (
        pytest.raises(UserError, match="cannot be saved: No space left on device"),
        atomic.write_files(tmp_path) as saving,
    ):
        (saving / "a").write_text("new a")
        Path("/dev/full").write_text("x" * 10_000)
    assert read(tmp_path) == OLD
    assert len(list(tmp_path.iterdir())) == 2


def test_no_space_is_said_before_anything_is_written(tmp_path) -> None:
    write(tmp_path, OLD)
    with (
        pytest.raises(UserError, match=r"cannot be saved: \d+ bytes are needed, and the device has \d+ left"),
        atomic.write_files(tmp_path, size=2**62),
    ):
        pytest.fail("the block ran")
    assert read(tmp_path) == OLD


def test_places_where_nothing_can_be_saved(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be saved: "):
        write(tmp_path / "file", NEW)
    with pytest.raises(UserError, match="file/inside: cannot be saved: "):
        write(tmp_path / "file" / "inside", NEW)
    with pytest.raises(UserError, match="x: cannot be saved: "), atomic.write_file(tmp_path / "file" / "x"):
        pass
    (tmp_path / "folder" / "b").mkdir(parents=True)
    with pytest.raises(UserError, match="b: cannot be saved: it is a folder"):
        write(tmp_path / "folder", NEW)
    assert read(tmp_path / "folder") == {}
