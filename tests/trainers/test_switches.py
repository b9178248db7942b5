"""The switches of the recipe, and training under every switch at the synthetic data's shapes."""

import math
from collections.abc import Sequence

import pytest
import torch

from config import load_config
from dataset.features import Split
from dataset.loaders import UtteranceDataset
from models.dmd import DMD
from tests.reference import make_loader
from trainers.losses import Objective
from trainers.trainer import Trainer
from utils.log import start_log

SWITCHES = [  # each value once
    {},
    {"ort": "feature", "homo_repr": "l1", "hetero_repr": "off", "weight_decay_applied": True},
    {"ort": "paper", "homo_repr": "min_cosine", "hetero_repr": "l1", "gd_prior": "none"},
    {"objective": "paper"},
]


def make_trainer(batches: Sequence[dict] = (), **overrides) -> Trainer:
    """A trainer of a small model at the shapes of the synthetic data; batches of 4 utterances."""
    args = load_config("dmd", "synthetic", overrides={"nlevels": 1, "batch_size": 4} | overrides)
    args.seq_lens = [50, 50, 50]
    torch.manual_seed(1)
    batches = batches or [make_batch(0, [1.0, 1.0, -2.0, 0.4])]
    arrays = {
        name: torch.cat([b[name] for b in batches]).numpy()
        for name in ("text", "audio", "vision", "labels")
    }
    names = [f"utterance{i}" for i in range(len(arrays["labels"]))]
    split = Split(**arrays | {"labels": arrays["labels"][:, 0]}, ids=names, raw_text=names)
    loaders = {"train": make_loader(UtteranceDataset(split), 4)}
    return Trainer(args, DMD(args), Objective(args), loaders, torch.device("cpu"))


def make_batch(seed: int, labels) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n = len(labels)
    ids = torch.randint(5, 60, (n, 50), generator=generator)
    text = torch.stack([ids, torch.ones_like(ids), torch.zeros_like(ids)], dim=1).float()
    audio, vision = (torch.randn(n, 50, width, generator=generator) for width in (5, 20))
    labels = torch.tensor(labels)[:, None]
    return {
        "text": text,
        "audio": audio,
        "vision": vision,
        "labels": labels,
        "rows": torch.arange(n),
    }


@pytest.mark.parametrize(
    ("leftover", "batches", "steps"),
    [
        ("drop", 3, 1),
        ("step", 3, 2),
        ("drop", 4, 2),
        ("step", 4, 2),
        ("drop", 1, 1),
        ("step", 1, 1),
    ],
)
def test_leftover_batches_are_dropped_or_stepped(leftover, batches, steps, tmp_path, capsys):
    """Groups of two. Labels of 50 are beyond any prediction, so that the gradient of the last bias
    is negative in every batch; without momentum Adam then adds the learning rate to it in each
    step."""
    start_log(tmp_path / "run.log", verbose_level=1)
    data = [make_batch(seed, [50.0] * 4) for seed in range(batches)]
    overrides = {"update_epochs": 2, "adam_betas": [0.0, 0.0], "learning_rate": 0.001}
    trainer = make_trainer(data, leftover_batches=leftover, **overrides)
    bias = trainer.model.out_layer.bias
    before = bias.item()
    trainer.train_epoch()
    assert bias.item() - before == pytest.approx(0.001 * steps, rel=1e-3)
    warned = "fewer than update_epochs" in capsys.readouterr().out
    assert warned == (leftover == "drop" and batches == 1)


@pytest.mark.parametrize("applied", [False, True])
def test_weight_decay_only_applies_if_enabled(applied):
    """If a parameter has no gradient, Adam's first step is ±lr with weight decay, otherwise 0."""
    trainer = make_trainer(weight_decay_applied=applied, weight_decay=0.005)
    bias = trainer.objective.homo.W_edge.bias
    before = bias.item()
    bias.register_hook(torch.zeros_like)
    trainer.train_epoch()
    assert bias.item() - before == pytest.approx(-0.001 * math.copysign(applied, before), abs=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_tf32_is_used_only_for_precision_tf32(precision):
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
    trainer = make_trainer()
    trainer.precision = precision
    trainer.train_epoch()
    flags = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    assert flags == (precision == "tf32",) * 2


@pytest.mark.parametrize("fusion", ["sigmoid", "gate"])
def test_fusion_multiplies_features_only_with_gate(fusion):
    model = make_trainer(fusion=fusion, dst_feature_dim_nheads=[2, 1], output_dropout=0.0).model
    generator = torch.Generator().manual_seed(2)
    last_h, common = (
        {m: torch.randn(1, 4, generator=generator) for m in "lva"},
        torch.randn(1, 6, generator=generator),
    )
    # the head is its last layer
    torch.nn.init.zeros_(model.proj2.weight), torch.nn.init.zeros_(model.proj2.bias)
    fused = []
    for name, x in (last_h | {"c": common}).items():
        weight = torch.sigmoid(getattr(model, f"weight_{name}")(x))
        fused.append(weight * x if fusion == "gate" else weight)
    torch.testing.assert_close(
        model._fuse(last_h, common), model.out_layer(torch.cat(fused, dim=1))
    )


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_every_used_parameter_gets_a_gradient_and_the_loss_decreases(switch):
    trainer = make_trainer(**switch, **dict.fromkeys(("text_dropout", "output_dropout"), 0.0))
    # An odd number of utterances: the signs of their errors do not cancel in a bias.
    trainer.training_step(make_batch(0, [1.0, 1.0, -2.0]))
    parts = (trainer.model, trainer.objective)
    named = {name: p.grad for part in parts for name, p in part.named_parameters()}
    unused = {f"proj_cosine_{m}.{kind}" for m in "lva" for kind in ("weight", "bias")}
    assert all(gradient is None or torch.isfinite(gradient).all() for gradient in named.values())
    # A key's bias moves all scores of a query alike, and an edge's bias all edges: their true
    # gradient is zero. BERT's pooler is behind its last hidden state, its rarer words are not in
    # the batch.
    without = {
        name
        for name, gradient in named.items()
        if (gradient is None or not gradient.any()) and not name.startswith("text_model.")
    }
    assert unused <= without <= unused | {f"{graph}.W_edge.bias" for graph in ("homo", "hetero")}

    trainer = make_trainer([make_batch(3, [1.0, 1.0, -2.0, 0.4])], **switch)
    totals = [trainer.train_epoch().losses["total"] for _ in range(6)]
    assert all(math.isfinite(total) for total in totals) and max(totals[-2:]) < 0.9 * totals[0], (
        totals
    )
