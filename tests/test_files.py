"""Files that are whole or not there."""

import hashlib

import pytest

from cassava_kit.errors import UserError
from cassava_kit.files import (
    atomic_path,
    check_apart,
    find_file,
    find_folder,
    header_path,
    read_csv,
    read_json,
    sha256_bytes,
    sha256_file,
    write_json,
    write_text,
)


def test_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("power cut")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_seen_before_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("write", [write_text, write_json, "atomic_path"])
def test_who_reads_the_old_file_reads_on(tmp_path, write):
    """A file that is replaced is a new one: neither a reader nor a kill in between ever sees a part of it."""
    path = tmp_path / "a.txt"
    path.write_text("old" * 1000)
    before = path.stat().st_ino
    with path.open() as reader:
        start = reader.read(1)
        if write == "atomic_path":
            with atomic_path(path) as temporary:
                temporary.write_text("new")
        else:
            write(path, "new")
        assert start + reader.read() == "old" * 1000
    assert path.stat().st_ino != before and "new" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_the_same_bytes_for_the_same_value(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    write_json(tmp_path / "b.json", {"a": "ü", "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": "ü", "b": 1}


def test_broken_json_is_named(tmp_path):
    write_text(tmp_path / "a.json", "{")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"a,b\n1,2\n1,2,3\n", "comma"),
        (b"a;b\n1;2\n", "divided by semicolons: expected commas"),
        (b"a;b\n1;2,5\n1;2,5,5\n", "divided by semicolons: expected commas"),
        (b"a\tb\n1\t2\n", "divided by tabs: expected commas"),
        (b"a\n\xff\xfe", "comma"),
    ],
)
def test_a_broken_table_is_named(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.csv is .*{message}"):
        read_csv(tmp_path / "a.csv")


def test_a_header_never_takes_its_tables_name(tmp_path):
    assert header_path(tmp_path / "oof.csv") == tmp_path / "oof.json"
    with pytest.raises(ValueError, match=r"oof\.json: expected a name that ends in \.csv"):
        header_path(tmp_path / "oof.json")


def test_hashes_are_sha256(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == sha256_bytes(content) == hashlib.sha256(content).hexdigest()


def test_a_missing_file_is_told_with_what_is_there_instead(tmp_path):
    (tmp_path / "resnet50.safetensors").write_bytes(b"")
    (tmp_path / "runs").mkdir()
    assert find_file(tmp_path / "resnet50.safetensors", "file", "x") == tmp_path / "resnet50.safetensors"
    assert find_folder(str(tmp_path / "runs"), "x") == tmp_path / "runs"
    for path, there in (
        ("resnet5O.safetensors", " (did you mean resnet50.safetensors?)"),
        ("runs", " (it is a folder)"),
        ("nowhere/a.csv", f" (there is no folder {tmp_path / 'nowhere'})"),
        ("q", ""),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            find_file(tmp_path / path, "weights file", "make one")
        assert str(caught.value) == f"no weights file {tmp_path / path}{there}; make one"
    with pytest.raises(FileNotFoundError, match=r"no folder .*\.safetensors \(it is a file\); make one"):
        find_folder(tmp_path / "resnet50.safetensors", "make one")


def test_outputs_lie_apart_from_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.csv").symlink_to("oof.csv")
    check_apart(["weights.json", "other.csv"], ["oof.csv"])
    for out in ("oof.csv", "./oof.csv", tmp_path / "oof.json", "link.csv"):
        with pytest.raises(UserError, match=r"would be written over .*, which it is made from; give --out"):
            check_apart(["new.csv", out], ["oof.csv"])
