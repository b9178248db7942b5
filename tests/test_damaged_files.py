"""Damaged features, checkpoints and configs, through the real commands: one line and exit status 2, or a result.

Each test makes a few of them, and hundreds where the slow tests run. All are seeded.
"""

import copy
import io
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import run
import test as test_command
from config.schema import SETTING_NAMES
from dataset import check
from tests.dataset.hostile import CANARY, HOSTILE
from utils.cli import run_command

FIELDS = ("text", "audio", "vision", "id", "raw_text", "regression_labels")
TINY = {
    "use_bert": False, "feature_dims": [4, 4, 4], "dst_feature_dim_nheads": [4, 2], "nlevels": 1, "batch_size": 4,
    "update_epochs": 1, "max_epochs": 1, "conv1d_kernel_size_l": 1, "conv1d_kernel_size_a": 1,
    "conv1d_kernel_size_v": 1, "homo_gd_size": 4, "hetero_gd_size": 4,
}  # fmt: skip
AMOUNTS = [pytest.param(20, id="some"), pytest.param(400, marks=pytest.mark.slow, id="many")]


def make_content() -> dict:
    rng = np.random.default_rng(0)
    return {
        split: {key: rng.standard_normal((n, 6, 4)).astype(np.float32) for key in ("text", "audio", "vision")}
        | {"id": [f"{split}$_${i}" for i in range(n)], "raw_text": np.array(["a word"] * n, dtype=object),
           "regression_labels": rng.uniform(-3, 3, n)}
        for split, n in (("train", 8), ("valid", 4), ("test", 4))
    }  # fmt: skip


def make_config() -> dict:
    return {
        "datasetCommonParams": {
            "dataset_root_dir": ".", "own": {"aligned": {"featurePath": "own.pkl", "feature_dims": [4, 4, 4]}},
        },
        "dmd": {"commonParams": dict(TINY), "datasetParams": {"own": {"learning_rate": 1e-3}}},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys) -> Path:
    """A working folder with features, a config, and a trained run."""
    monkeypatch.chdir(tmp_path)
    Path("own.pkl").write_bytes(pickle.dumps(make_content()))
    Path("own.json").write_text(json.dumps(make_config()))
    assert run_command(lambda: run.main(TRAIN)) == 0
    return tmp_path


TRAIN = ["-d", "own", "-c", "own.json", "--epochs", "1", "--device", "cpu"]
TRAINED = Path("pt/dmd-own-1111")


class Outcomes:
    """What the commands made of the files so far."""

    def __init__(self, capsys):
        self.capsys, self.wrong, self.statuses = capsys, {}, []

    def record(self, what: str, command: Callable, *arguments: str) -> None:
        self.capsys.readouterr()
        try:
            status = run_command(lambda: command(list(arguments)))
        except BaseException as error:  # a traceback on the terminal
            self.wrong[f"{what}: {type(error).__name__}: {error}"[:300]] = error
            return
        said = self.capsys.readouterr().err
        self.statuses.append(status)
        if status not in (0, 2) or "Traceback" in said or said.count("\n") != (status == 2) or len(said) > 1500:
            self.wrong[what] = said

    def all_well(self) -> None:
        print(len(self.statuses), "files,", self.statuses.count(2), "refused")
        assert not Path(CANARY).exists()
        assert not self.wrong, "\n".join(self.wrong)


@pytest.fixture
def outcomes(folder, capsys) -> Iterator[Outcomes]:
    outcomes = Outcomes(capsys)
    yield outcomes
    outcomes.all_well()


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
        yield f"damage {number}", bytes(changed)


def everything(examples: int, *strategies: st.SearchStrategy) -> Callable:
    """Call the test with so many examples, the same every time, and all of them whatever happens."""

    def decorate(test: Callable) -> None:
        chosen = settings(max_examples=examples, derandomize=True, deadline=None, database=None,
                          phases=[Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
        chosen(given(*strategies)(test))()

    return decorate


def train_on(outcomes: Outcomes, what: str, content: bytes) -> None:
    Path("damaged.pkl").write_bytes(content)
    outcomes.record(what, run.main, *TRAIN, "--set", "featurePath=damaged.pkl")


@pytest.mark.parametrize("amount", AMOUNTS)
def test_damaged_bytes_of_features(outcomes, amount):
    whole = [pickle.dumps(make_content(), protocol) for protocol in (2, 4, 5)]
    evil = [HOSTILE[name] for name in ("os.system", "protocol 0, nested", "protocol 4, in an array")]
    for number, content in enumerate(whole + evil):
        for what, changed in damaged(content, amount // 6, seed=number):
            train_on(outcomes, f"file {number}, {what}", changed)


numbers = st.one_of(st.floats(), st.integers(-(2**70), 2**70), st.booleans(), st.none())
values = st.recursive(
    st.one_of(numbers, st.text(max_size=5), st.binary(max_size=5)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


def odd_array(draw_shape: tuple, dtype: str, fill: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.full(draw_shape, fill, np.float64).astype(dtype)


arrays = st.builds(
    odd_array,
    st.sampled_from(
        [(), (0,), (8,), (4, 6), (8, 6, 4), (4, 6, 4), (8, 1, 4), (8, 6, 0), (8, 0, 4), (8, 1), (8, 6, 4, 1)]
    ),
    st.sampled_from(["f2", "f4", "f8", "i8", "u1", "?", "c8", "S3", "U3", "O"]),
    st.sampled_from([0.0, 1.0, -1.0, 3.5, 1e30, -1e38, np.nan, np.inf, -np.inf]),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("amount", AMOUNTS)
def test_wrong_values_in_features(outcomes, amount):
    @everything(amount, st.sampled_from(["train", "valid", "test"]), st.sampled_from(FIELDS), values | arrays)
    def _(split, field, value):
        content = make_content()
        content[split][field] = value
        train_on(outcomes, f"{split} {field} {value!r}", pickle.dumps(content))
        outcomes.record(f"check {split} {field} {value!r}", check.main, "damaged.pkl")

    content = make_content()
    for one, other in zip(FIELDS, FIELDS[1:] + FIELDS[:1], strict=True):
        swapped = copy.deepcopy(content)
        fields = swapped["train"]
        fields[one], fields[other] = fields[other], fields[one]
        train_on(outcomes, f"{one} and {other} swapped", pickle.dumps(swapped))


@pytest.mark.parametrize("amount", AMOUNTS)
def test_damaged_checkpoints(outcomes, amount):
    whole = (TRAINED / "best.pth").read_bytes()
    state = torch.load(TRAINED / "best.pth")

    def wrong_values(rng) -> bytes:
        changed = dict(state)
        name, other = rng.choice(list(state), 2)
        value = state[name]
        odd = [
            value.double(), value.long(), value * np.nan, value[..., None], value.flatten()[:1], value[:0],
            value.to(torch.complex64), state[other], None, 1.0, "text", [value], value.numpy(), value.to_sparse(),
            torch.tensor(1.0),
        ]  # fmt: skip
        changed[rng.choice([name, "new", ""])] = odd[rng.integers(len(odd))]
        buffer = io.BytesIO()
        torch.save(changed if rng.random() < 0.9 else {1: value}, buffer)
        return buffer.getvalue()

    rng = np.random.default_rng(0)
    files = [*damaged(whole, amount, 0), *((f"values {i}", wrong_values(rng)) for i in range(amount))]
    for what, content in files:
        (TRAINED / "damaged.pth").write_bytes(content)
        outcomes.record(what, test_command.main, str(TRAINED / "damaged.pth"), "--predictions", "out.csv")


json_numbers = st.one_of(st.floats(), st.integers(-2, 40), st.sampled_from([10**30, 10**400, -1, 0, True, None]))
json_values = st.recursive(
    st.one_of(json_numbers, st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("amount", AMOUNTS)
def test_damaged_configs(outcomes, amount):
    @everything(amount, st.sampled_from(SETTING_NAMES), json_values)
    def _(key, value):
        config = make_config()
        config["dmd"]["datasetParams"]["own"][key] = value
        Path("damaged.json").write_text(json.dumps(config))
        arguments = [argument.replace("own.json", "damaged.json") for argument in TRAIN]
        outcomes.record(f"{key} = {value!r}", run.main, *arguments)

    @everything(amount, st.sampled_from(["settings", "features", "seed"]), st.sampled_from(SETTING_NAMES), json_values)
    def _(section, key, value):
        description = json.loads((TRAINED / "config.json").read_text())
        description[section] = value if section != "settings" else description[section] | {key: value}
        (TRAINED / "1").mkdir(exist_ok=True)
        (TRAINED / "1/config.json").write_text(json.dumps(description))
        (TRAINED / "1/best.pth").write_bytes((TRAINED / "best.pth").read_bytes())
        outcomes.record(f"{section} {key} = {value!r}", test_command.main, str(TRAINED / "1/best.pth"))

    text = Path("own.json").read_bytes()
    for what, content in damaged(text, amount, 0):
        Path("damaged.json").write_bytes(content)
        outcomes.record(what, run.main, *[argument.replace("own.json", "damaged.json") for argument in TRAIN])
