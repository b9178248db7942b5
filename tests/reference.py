"""The reference numbers of the released code (PyTorch 1.9.0, CPU) and the recipe for their weights
and inputs.

Weights and inputs are not stored: both follow from a seed and, for a weight, from its name. The
    `.npz` files in tests/parity/ hold the results; `case` in each describes how it was made.
"""

import json
import zlib
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from easydict import EasyDict
from torch.utils.data import DataLoader
from transformers import BertConfig

from config import load_config
from dataset.features import Split
from dataset.loaders import UtteranceDataset
from models.dmd import DMD
from trainers.losses import Objective
from utils.device import choose_tf32

FOLDER = Path(__file__).parent / "parity"
CASES = ("mosi_aligned", "mosei_aligned", "mosi_aligned_bert")
DROPOUTS = (
    "text_dropout",
    "attn_dropout",
    "attn_dropout_a",
    "attn_dropout_v",
    "relu_dropout",
    "embed_dropout",
    "res_dropout",
    "output_dropout",
)
NO_DROPOUT = dict.fromkeys(DROPOUTS, 0.0)
TINY_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 200,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@cache
def parameter_value(name: str, shape, seed: int) -> torch.Tensor:
    """The value of the parameter called `name`: normal, scaled by its fan-in; near 1 for norms,
    small for biases.
    """
    rng = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)
    value = rng.standard_normal(size=tuple(shape))
    if len(shape) > 1:
        value = value / np.sqrt(int(np.prod(shape[1:])))
    else:
        value = 1.0 + 0.05 * value if name.endswith("weight") else 0.05 * value
    return torch.from_numpy(value.astype(np.float32))


def fill_parameters(module: torch.nn.Module, seed: int, prefix: str = "") -> None:
    """Overwrite every parameter of the module by its reference value."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(parameter_value(prefix + name, parameter.shape, seed))


def make_loader(dataset: UtteranceDataset, batch_size: int, **options) -> DataLoader:
    """A loader of whole batches, in file order."""
    return DataLoader(dataset, batch_size, collate_fn=lambda batch: batch, **options)


def make_utterances(case: dict) -> dict[str, np.ndarray]:
    """All utterances of a case: text, audio, vision, labels; the order of the draws is part of the
    recipe.
    """
    rng = np.random.RandomState(case["seed"])
    n, (t_l, t_a, t_v), (d_l, d_a, d_v) = case["n_samples"], case["lens"], case["feature_dims"]
    labels = np.round(rng.uniform(-3, 3, size=n) / 0.6) * 0.6
    text, audio, vision = [], [], []
    for i in range(n):
        kept = rng.randint(t_l // 3, t_l + 1)
        if case["use_bert"]:
            rows = np.zeros((3, t_l))
            rows[0, :kept] = rng.randint(1, case["vocab_size"], size=kept)
            rows[1, :kept] = 1
        else:
            rows = rng.standard_normal((t_l, d_l))
            rows[kept:] = 0
        kept_a, kept_v = rng.randint(t_a // 3, t_a + 1), rng.randint(t_v // 3, t_v + 1)
        a, v = rng.standard_normal((t_a, d_a)), rng.standard_normal((t_v, d_v))
        for steps, kept in ((a, kept_a), (v, kept_v)):  # padded at the end and at the front in turn
            steps[slice(kept, None) if i % 2 else slice(None, len(steps) - kept)] = 0
        text.append(rows)
        audio.append(a)
        vision.append(v)
    arrays = {
        "text": np.stack(text),
        "audio": np.stack(audio),
        "vision": np.stack(vision),
        "labels": labels,
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


class Reference:
    """One case: its configuration, its inputs, the model and objective with their reference
    weights, the numbers.
    """

    device = "cpu"  # or the value of pytest's --device

    def __init__(self, name: str, bert_folder: Path, **overrides):
        self.numbers = np.load(FOLDER / f"{name}.npz")
        self.case = json.loads(str(self.numbers["case"]))
        overrides = NO_DROPOUT | overrides
        overrides |= {"use_bert": self.case["use_bert"], "feature_dims": self.case["feature_dims"]}
        overrides |= self.case["overrides"] | {"batch_size": self.case["batch_size"]}
        if self.case["use_bert"]:
            BertConfig(**TINY_BERT).save_pretrained(bert_folder)
            overrides["pretrained"] = str(bert_folder)
        self.args: EasyDict = load_config("dmd", self.case["dataset"], overrides=overrides)
        self.args.seq_lens = self.case["lens"]

    @cached_property
    def utterances(self) -> dict[str, np.ndarray]:
        return make_utterances(self.case)

    def split(self, rows: slice) -> Split:
        names = [f"utterance{i}" for i in range(len(self.utterances["labels"]))[rows]]
        return Split(
            **{name: array[rows] for name, array in self.utterances.items()},
            ids=names,
            raw_text=names,
        )

    def build(self) -> tuple[DMD, Objective]:
        choose_tf32("fp32")
        model, objective = DMD(self.args), Objective(self.args)
        fill_parameters(model, self.case["seed"])
        fill_parameters(objective, self.case["seed"])
        return model.to(self.device), objective.to(self.device)

    def batch(self, index: int = 0) -> dict[str, torch.Tensor]:
        size = self.case["batch_size"]
        rows = slice(index * size, (index + 1) * size)
        batch = {name: torch.from_numpy(array[rows]) for name, array in self.utterances.items()}
        batch |= {"labels": batch["labels"][:, None], "rows": torch.arange(size)}
        return {name: x.to(self.device) for name, x in batch.items()}

    def compare(self, group: str, got: dict, tolerance: float, least: float = 0.0) -> None:
        """Assert that the tensors of a group are the recorded ones, by published name.

        Other names in `got` are ignored: losses or layers that were added. Of gradients, the norms
        are compared if they are above `least`; -1 stands for a parameter without a gradient.
        """
        expected = self.group(group)
        missing = sorted(set(expected) - set(got))
        assert not missing, f"{group} lacks {missing}"
        differences = {}
        for name, value in expected.items():
            x = got[name]
            if group == "gradnorm":
                if value == -1:
                    if x is not None:
                        differences[name] = "has a gradient"
                    continue
                if value <= least:
                    continue
                if x is None:
                    differences[name] = "has no gradient"
                    continue
                x = x.norm()
            difference = relative_difference(x, value)
            if not difference <= tolerance:  # also NaN
                differences[name] = difference
        assert not differences, f"{group} differs by more than {tolerance} in {differences}"

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """The reference numbers whose names begin with `prefix`/, without it."""
        start = prefix + "/"
        return {
            key[len(start) :]: self.numbers[key]
            for key in self.numbers.files
            if key.startswith(start)
        }


def relative_difference(got, expected) -> float:
    """Largest absolute difference over the largest absolute value of the reference (at least
    1e-3).
    """
    got = (
        got.detach().cpu().double().numpy()
        if isinstance(got, torch.Tensor)
        else np.asarray(got, np.float64)
    )
    assert got.shape == np.shape(expected), f"shape {got.shape}, expected {np.shape(expected)}"
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-3))
