"""Damaged features, checkpoints and configs, through the real commands: one line and exit status 2,
or a result.

Each test damages a few files, and hundreds of them among the slow tests. All damage is seeded.
"""

import io
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import run
import test as test_command
from dataset import check
from tests.commands import call, write_pickle
from tests.dataset.hostile import CANARY, HOSTILE
from tests.dataset.test_features import make_content

TINY = {
    "use_bert": False,
    "dst_feature_dim_nheads": [4, 2],
    "nlevels": 1,
    "batch_size": 4,
    "update_epochs": 1,
    "conv1d_kernel_size_l": 1,
    "conv1d_kernel_size_a": 1,
    "conv1d_kernel_size_v": 1,
    "homo_gd_size": 4,
    "hetero_gd_size": 4,
}
CONFIG = {
    "datasetCommonParams": {
        "dataset_root_dir": ".",
        "own": {"aligned": {"featurePath": "own.pkl", "feature_dims": [12, 5, 4]}},
    },
    "dmd": {"commonParams": TINY, "datasetParams": {"own": {"learning_rate": 1e-3}}},
}
TRAIN = ["-d", "own", "-c", "own.json", "--epochs", "1", "--device", "cpu", "--no-figures"]
TRAINED = Path("pt/dmd-own-1111")
AMOUNTS = [pytest.param(8, id="some"), pytest.param(200, marks=pytest.mark.slow, id="many")]


@pytest.fixture
def record(tmp_path, monkeypatch, capsys) -> Iterator[Callable]:
    """In a folder with features, a config, and a trained run: call a command on a file, and record
    the outcome.
    """
    monkeypatch.chdir(tmp_path)
    write_pickle(Path("own.pkl"), make_content())
    Path("own.json").write_text(json.dumps(CONFIG))
    assert call(run, *TRAIN) == 0
    wrong = {}

    def note(what: str, command, *arguments: str) -> None:
        capsys.readouterr()
        status = call(command, *arguments)
        message = capsys.readouterr().err
        if status not in (0, 2) or "Traceback" in message or message.count("\n") != (status == 2):
            wrong[what] = message

    yield note
    assert not Path(CANARY).exists()
    assert not wrong, "\n".join(f"{what}: {message}" for what, message in wrong.items())


def damaged(content: bytes, amount: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Cut short, bits flipped, bytes replaced, a piece moved: a quarter each."""
    rng = np.random.default_rng(seed)
    for number in range(amount):
        at, other = sorted(rng.integers(len(content), size=2).tolist())
        changed = bytearray(content)
        if number % 4 == 0:
            changed = changed[:other]
        elif number % 4 == 1:
            changed[at] ^= 1 << int(rng.integers(8))
        elif number % 4 == 2:
            changed[at : at + 3] = rng.bytes(3)
        else:
            changed[at:other], changed[other:] = changed[other:], changed[at:other]
        yield f"seed {seed}, damage {number}", bytes(changed)


VALUES = [
    None,
    "text",
    [],
    [[]],
    [None] * 8,
    {"a": 1},
    np.zeros(()),
    np.zeros((8, 6, 0)),
    np.full((8, 6, 4), 1e39),
    np.zeros((8, 6, 4), "S3"),
    np.zeros((8, 6, 4), "O"),
    [10**400] * 8,
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("amount", AMOUNTS)
def test_damaged_features_give_one_line(record, amount):
    files = [pickle.dumps(make_content(), protocol) for protocol in (2, 4, 5)]
    files += [
        HOSTILE[name] for name in ("os.system", "protocol 0, nested", "protocol 4, in an array")
    ]
    changed = [
        pair for seed, content in enumerate(files) for pair in damaged(content, amount // 4, seed)
    ]
    for number, value in enumerate(VALUES):
        content = make_content()
        fields = list(content["train"])
        content[["train", "test"][number % 2]][fields[(number * 7 // 2) % len(fields)]] = value
        changed.append((f"value {number}", pickle.dumps(content)))
    for what, content in changed:
        Path("damaged.pkl").write_bytes(content)
        record(what, check, "damaged.pkl")
        record(what, run, *TRAIN, "--overwrite", "--set", "featurePath=damaged.pkl")


@pytest.mark.parametrize("amount", AMOUNTS)
def test_damaged_checkpoints_give_one_line(record, amount):
    state = torch.load(TRAINED / "best.pth")
    name, value = next(iter(state.items()))
    changed = list(damaged((TRAINED / "best.pth").read_bytes(), amount, 0))
    for odd in (
        value * np.nan,
        value[..., None],
        value[:0],
        value.long(),
        None,
        1.0,
        [value],
        value.to_sparse(),
    ):
        buffer = io.BytesIO()
        torch.save(state | {name: odd}, buffer)
        changed.append((f"{odd!r}"[:50], buffer.getvalue()))
    for what, content in changed:
        (TRAINED / "damaged.pth").write_bytes(content)
        record(what, test_command, str(TRAINED / "damaged.pth"), "--predictions", "out.csv")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("amount", AMOUNTS)
def test_damaged_configs_give_one_line(record, amount):
    for what, content in damaged(json.dumps(CONFIG).encode(), amount, 0):
        Path("damaged.json").write_bytes(content)
        record(
            what,
            run,
            *[argument.replace("own.json", "damaged.json") for argument in TRAIN],
            "--overwrite",
        )
    folder = TRAINED / "1"
    folder.mkdir()
    (folder / "best.pth").write_bytes((TRAINED / "best.pth").read_bytes())
    for what, content in damaged((TRAINED / "run.json").read_bytes(), amount, 0):
        (folder / "run.json").write_bytes(content)
        record(what, test_command, str(folder / "best.pth"))
