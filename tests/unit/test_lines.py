import gzip
import zlib
from pathlib import Path

import pytest

from lorien.dialects import _compressed, _lines
from lorien.dialects._lines import find_logs, head_lines, iter_lines
from lorien.errors import UnreadableLog


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_numbers_lines_and_skips_blank_ones(tmp_path: Path) -> None:
    log = write(tmp_path / "a.log", b"one\n\n  \r\ntwo\nthree")
    assert list(iter_lines(log)) == [(1, b"one"), (4, b"two"), (5, b"three")]


@pytest.mark.parametrize("newline_at_end", [True, False])
def test_gzip_equals_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newline_at_end: bool) -> None:
    monkeypatch.setattr(_compressed, "CHUNK_BYTES", 1000)  # many chunks, lines across their borders
    text = b"\n".join(b"%d " % i * (i % 50 + 1) for i in range(2000)) + b"\n" * newline_at_end
    plain = list(iter_lines(write(tmp_path / "a.log", text)))
    assert len(plain) == 2000
    assert list(iter_lines(write(tmp_path / "a.log.gz", gzip.compress(text)))) == plain


@pytest.mark.parametrize("padding", [b"", b"\0" * 512])
def test_members_appended_to_a_gzip_are_read(tmp_path: Path, padding: bytes) -> None:
    data = gzip.compress(b"a\nb\n") + padding + gzip.compress(b"c\n") + padding
    assert [line for _, line in iter_lines(write(tmp_path / "a.gz", data))] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_truncated_gzip_gives_everything_before_the_cut(
    tmp_path: Path, keep: float, caplog: pytest.LogCaptureFixture
) -> None:
    text = b"".join(b"%d\n" % (i * 7919 % 100003) for i in range(50_000))
    whole = gzip.compress(text)
    cut = whole[: int(len(whole) * keep)]
    lines = [line for _, line in iter_lines(write(tmp_path / "a.gz", cut))]
    assert b"\n".join(lines) == zlib.decompressobj(wbits=31).decompress(cut).rstrip(b"\n")
    assert "ends early" in caplog.text


def test_damaged_gzip_keeps_what_came_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = bytearray(gzip.compress(b"".join(b"%d\n" % i for i in range(300_000))))
    middle = len(whole) // 2
    whole[middle : middle + 100] = b"\xff" * 100
    lines = [line for _, line in iter_lines(write(tmp_path / "a.gz", bytes(whole)))]
    assert lines[:100_000] == [b"%d" % i for i in range(100_000)]
    assert len(lines) < 300_000
    assert "damaged" in caplog.text


def test_garbage_after_a_member_does_not_lose_the_member(tmp_path: Path) -> None:
    log = write(tmp_path / "a.gz", gzip.compress(b"a\n") + b"garbage")
    assert list(iter_lines(log)) == [(1, b"a")]


def test_a_file_without_newlines_is_refused_before_it_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lines, "MAX_LINE_BYTES", 3 << 20)
    with pytest.raises(UnreadableLog, match="longer than 3 MiB"):
        list(iter_lines(write(tmp_path / "a.gz", gzip.compress(b"x" * (5 << 20)))))


def test_a_path_that_cannot_be_opened_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableLog, match="cannot be read"):
        list(iter_lines(tmp_path / "none.log"))
    assert head_lines(tmp_path / "none.log") == []


def test_head_of_a_binary_file_is_empty(tmp_path: Path) -> None:
    assert head_lines(write(tmp_path / "a.log", b"text\n\x00\x01\x02\n")) == []
    assert head_lines(write(tmp_path / "b.log", b"text\nmore\n"), 1) == [b"text"]


def test_finds_logs_by_content_in_a_stable_order(tmp_path: Path) -> None:
    for name in ("b/2.log.tmp", "a.json.gz", "b/1.log", "c", "B.LOG"):
        write(tmp_path / name, b"mine\n")
    write(tmp_path / "late.log", b"damaged\nmine\n")
    write(tmp_path / "other.log", b"theirs\n")
    (tmp_path / "folder.log").mkdir()

    def mine(line: bytes) -> bool:
        return line == b"mine"

    found = [p.relative_to(tmp_path).as_posix() for p in find_logs(tmp_path, (), mine)]
    assert found == ["B.LOG", "a.json.gz", "b/1.log", "b/2.log.tmp", "c", "late.log"]
    named = [path.name for path in find_logs(tmp_path, (".json", ".log"), mine)]
    assert named == ["a.json.gz", "1.log", "late.log"]
    assert list(find_logs(tmp_path / "c", (".log",), mine)) == [tmp_path / "c"]  # named by the user
    assert list(find_logs(tmp_path / "missing", (), mine)) == []
