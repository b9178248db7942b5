"""Broken downloads: run.py, test.py and dataset.check report in one line what the file is."""

import bz2
import gzip
import hashlib
import io
import lzma
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

import run
import test as test_command
from dataset import check
from dataset.features import PUBLISHED_SHA256
from dataset.pickles import load_pickle
from tests.commands import refused, train
from tests.dataset.test_features import make_content
from utils.errors import DataError

PICKLES = {protocol: pickle.dumps(make_content(), protocol) for protocol in range(6)}
PAGE = b"<!DOCTYPE html><html><body>Sign in to download</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 357\n"


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("aligned_50.pkl", PICKLES[4])
    return file.getvalue()


def checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, file)
    return file.getvalue()


BROKEN = {
    "empty": (b"", "empty (0 bytes)"),
    "web page": (PAGE, f"a web page of {len(PAGE)} bytes"),
    "web page after blank lines": (b"\r\n\t " + PAGE, "a web page"),
    "web page after a byte order mark": (b"\xef\xbb\xbf\n" + PAGE, "a web page"),
    "error of a store": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "a web page"),
    "pointer": (POINTER, "a Git LFS pointer"),
    "zip": (zipped(), "an archive (zip). Unpack it"),
    "gzip": (gzip.compress(PICKLES[4]), "an archive (gzip). Unpack it"),
    "bzip2": (bz2.compress(PICKLES[4]), "an archive (bzip2). Unpack it"),
    "xz": (lzma.compress(PICKLES[4]), "an archive (xz). Unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(50), "an archive (7z). Unpack it"),
    "rar": (b"Rar!\x1a\x07\x01\x00" + bytes(50), "an archive (rar). Unpack it"),
    "checkpoint": (checkpoint(), "a checkpoint of PyTorch"),
    "half a pickle": (PICKLES[4][:3000], "ends early (3000 bytes)"),
    "one byte of a pickle": (b"\x80", "ends early (1 bytes)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_every_command_names_the_kind_of_a_wrong_file(case, capsys, trained):
    content, words = BROKEN[case]
    Path("broken.pkl").write_bytes(content)
    own = hashlib.sha256(content).hexdigest()
    checkpoint, mosi = "pt/dmd-synthetic-1111/best.pth", ["-d", "mosi"]
    setting = f"featurePath={Path('broken.pkl').resolve()}"
    for message in (
        refused(capsys, check, "broken.pkl", *mosi),
        refused(capsys, run, *mosi, "--set", setting),
        refused(capsys, test_command, checkpoint, *mosi, "--set", setting),
    ):
        assert "broken.pkl: not a readable pickle: " in message and words in message
        assert message.rstrip().endswith(
            f"SHA-256 of this file: {own}; published: {PUBLISHED_SHA256['mosi', True]}."
        )
    for message in (
        refused(capsys, check, "broken.pkl"),
        refused(capsys, check, "broken.pkl", "-d", "synthetic"),
        refused(capsys, train, "-Fa", "broken.pkl", "--name", "other"),
        refused(
            capsys, test_command, checkpoint, "--features", "broken.pkl", "--predictions", "x.csv"
        ),
    ):
        assert (
            "broken.pkl: not a readable pickle: " in message
            and words in message
            and "SHA-256" not in message
        )


def test_checksum_depends_on_data_set_and_alignment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken.pkl").write_bytes(b"")
    for dataset in ("mosi", "mosei"):
        for aligned in (True, False):
            setting = f"need_data_aligned={str(aligned).lower()}"
            message = refused(capsys, check, "broken.pkl", "-d", dataset, "--set", setting)
            assert f"published: {PUBLISHED_SHA256[dataset, aligned]}." in message


@pytest.mark.parametrize("protocol", PICKLES)
def test_truncated_pickle_is_reported_as_incomplete(protocol, tmp_path):
    path, data = tmp_path / "a.pkl", PICKLES[protocol]
    for length in [*range(2, 200, 7), *range(200, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=rf"ends early \({length} bytes\)"):
            load_pickle(path)


def test_other_damage_has_its_own_reason(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"id,text\na,b\n")
    with pytest.raises(DataError, match=r"not a readable pickle \(.*\). Expected a dict") as error:
        load_pickle(path)
    assert "ends early" not in str(error.value)
