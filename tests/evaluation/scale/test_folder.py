"""Folders travel whole and unpack nowhere else."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.scale.folder import RecordCount, RecordReader, lay_over, pack, pack_within


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def file(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def link(name: str, to: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def test_a_folder_comes_back_as_it_went_over_what_is_there(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "candidate" / "L1").mkdir(parents=True)
    (there / "candidate" / "L1" / "silu.py").write_text("x = 1")
    (there / "records.jsonl").write_text("new\n")
    (there / "outcome.json").write_text("of the other machine")
    here.mkdir()
    (here / "records.jsonl").write_text("old\n")
    (here / "kept.txt").write_text("kept")
    lay_over(pack(there), here)
    assert {str(p.relative_to(here)): p.read_text() for p in here.rglob("*") if p.is_file()} == {
        "candidate/L1/silu.py": "x = 1",
        "records.jsonl": "new\n",
        "kept.txt": "kept",
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "there"]


@pytest.mark.parametrize(
    "member",
    [
        file("/etc/outside"),
        file("../outside"),
        file("a/../../outside"),
        link("a", "/etc/passwd", tarfile.SYMTYPE),
        link("a", "../outside", tarfile.SYMTYPE),
        link("a", "../outside", tarfile.LNKTYPE),
        link("a", "", tarfile.FIFOTYPE),
    ],
    ids=lambda m: f"{m.name} {m.type!r} {m.linkname}",
)
def test_a_tar_that_reaches_outside_is_refused_and_writes_nothing(tmp_path: Path, member: tarfile.TarInfo) -> None:
    folder = tmp_path / "run" / "job"
    with pytest.raises(EvaluationError, match="refused to unpack"):
        lay_over(tar_of((file("good"), b"1"), (member, b"")), folder)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_unpacking_replaces_a_link_and_does_not_write_through_it(tmp_path: Path) -> None:
    folder, outside = tmp_path / "job", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "mine.py").write_text("mine")
    (folder / "a.py").symlink_to(outside / "mine.py")
    lay_over(tar_of((file("a.py"), b"theirs")), folder)
    assert (outside / "mine.py").read_text() == "mine"
    assert (folder / "a.py").read_text() == "theirs"
    (folder / "candidate").symlink_to(outside)
    with pytest.raises(EvaluationError, match="link that leads out"):
        lay_over(tar_of((file("candidate/mine.py"), b"theirs")), folder)
    assert (outside / "mine.py").read_text() == "mine"


def test_broken_and_oversized_tars_are_refused(tmp_path: Path) -> None:
    whole = tar_of((file("a"), os.urandom(10_000)))
    for broken in (b"", b"no tar", whole[:2000]):
        with pytest.raises(EvaluationError, match="cannot be unpacked"):
            lay_over(broken, tmp_path / "job")
    with pytest.raises(EvaluationError, match="more than"):
        lay_over(tar_of((file("zeros"), bytes(100_000))), tmp_path / "job", limit=50_000)
    assert list((tmp_path / "job").iterdir()) == []


def test_a_folder_over_the_limit_does_not_travel_and_the_largest_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(3_000_000))
    (tmp_path / "entry.json").write_text("{}")
    with pytest.raises(EvaluationError, match=r"weights\.bin 3 MB.*run without Ray"):
        pack(tmp_path, limit=1_000_000)
    data, left_out = pack_within(tmp_path, limit=1_000_000)
    assert left_out == ["weights.bin (3 MB)"]
    lay_over(data, tmp_path / "copy")
    assert [p.name for p in (tmp_path / "copy").iterdir()] == ["entry.json"]


def test_a_linked_file_travels_as_the_file_and_a_linked_folder_is_refused(tmp_path: Path) -> None:
    folder, outside = tmp_path / "job", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "a.py").write_text("content")
    (folder / "a.py").symlink_to(outside / "a.py")
    lay_over(pack(folder), tmp_path / "copy")
    assert (tmp_path / "copy" / "a.py").read_text() == "content"
    (folder / "candidate").symlink_to(outside)
    with pytest.raises(EvaluationError, match="only files travel"):
        pack(folder)


def test_records_arrive_whole_once_and_in_order(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    for folder in (there, here):  # a killed try left half a line
        (folder / "records.jsonl").write_bytes(b"0\n1\nhal")
    reader = RecordReader(there)
    (there / "records.jsonl").write_bytes(b"0\n1\n2\n")  # the next one mends it

    def send() -> bytes:
        for piece in reader.pieces():
            piece.write(here)
        return (here / "records.jsonl").read_bytes()

    assert send() == b"0\n1\n2\n"
    with (there / "records.jsonl").open("ab") as file:
        file.write(b"3\n" * 100_000 + b"unfinished")
    assert send() == b"0\n1\n2\n" + b"3\n" * 100_000
    assert reader.pieces() == []
    (there / "records.jsonl").write_bytes(b"anew\n")
    assert send() == b"anew\n"


def test_records_are_counted_as_they_grow_and_shrink(tmp_path: Path) -> None:
    count = RecordCount(tmp_path)
    assert not count.advanced()
    (tmp_path / "records.jsonl").write_bytes(b"0\n1\nhal")
    assert count.advanced() and (count.lines, count.bytes) == (2, 7)
    assert not count.advanced()
    (tmp_path / "records.jsonl").write_bytes(b"0\n1\nhalf\n")
    assert count.advanced() and (count.lines, count.bytes) == (3, 9)
    (tmp_path / "records.jsonl").write_bytes(b"0\n")
    assert count.advanced() and (count.lines, count.bytes) == (1, 2)
