"""DMD at the sizes of all kinds of data."""

import pytest
import torch
from torch.nn.functional import dropout as torch_dropout

from config import load_config
from models import transformer
from models.dmd import DMD
from tests.reference import DROPOUTS
from trainers.losses import Objective


def build(seq_lens=(50, 50, 50), dataset="mosi", **overrides):
    args = load_config("dmd", dataset, overrides={"use_bert": False, "nlevels": 1} | overrides)
    args.seq_lens = list(seq_lens)
    torch.manual_seed(0)
    return DMD(args), Objective(args)


def inputs(model, batch=2):
    generator = torch.Generator().manual_seed(1)
    sizes = zip(model.args.seq_lens, model.args.feature_dims, strict=True)
    return [torch.randn(batch, steps, width, generator=generator) for steps, width in sizes]


@pytest.mark.parametrize(
    ("seq_lens", "dims", "steps", "batch"),
    [
        ((50, 375, 500), [300, 74, 35], (46, 371, 496), 2),
        # As wide as the model: not convolved. The released code counts on the steps that a
        # convolution leaves.
        ((50, 50, 50), [768, 50, 20], (46, 50, 46), 2),
        ((50, 50, 50), [768, 5, 20], (46, 46, 46), 1),
    ],
    ids=["unaligned", "audio as wide as the model", "batch of one"],
)
def test_model_accepts_any_lengths_widths_and_a_dead_modality(seq_lens, dims, steps, batch):
    model, objective = build(seq_lens, feature_dims=dims)
    text, audio, vision = inputs(model, batch)
    output = model(text, audio, 0 * vision)
    assert [output.common[m].shape for m in "lav"] == [(batch, t, 50) for t in steps]
    assert [getattr(model, f"align_c_{m}").in_features for m in "lav"] == [50 * t for t in steps]
    objective(output, torch.tensor([[1.0], [-1.0]])[:batch])["total"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_seed_gives_the_recorded_initial_weights():
    """A sum recorded before the modules were rearranged: they draw in the published order."""
    model, objective = build()
    total = sum(
        p.detach().double().abs().sum().item()
        for p in (*model.parameters(), *objective.parameters())
    )
    assert total == pytest.approx(146432.7900108757, rel=1e-9)


def test_each_dropout_setting_acts_on_its_own_part(monkeypatch):
    """Every setting has a probability of its own, and every modality a length, so that each draw
    tells whose it is.
    """
    p = {name: (number + 1) / 16 for number, name in enumerate(DROPOUTS)}
    steps, d = {"l": 5, "a": 6, "v": 7}, 8  # after convolutions of 1
    kernel_sizes = {f"conv1d_kernel_size_{m}": 1 for m in steps}
    sizes = {
        "dst_feature_dim_nheads": [d, 2],
        "nlevels": 2,
        "need_data_aligned": False,
        "fast": False,
    }
    model, _ = build((5, 6, 7), **sizes, **p, **kernel_sizes)
    drawn = []

    def spy(x, p=0.5, training=True, inplace=False):
        drawn.extend([(p, tuple(x.shape[1:]))] * (training and p > 0))
        return torch_dropout(x, p, training, inplace)

    def spy_attention(weights, p):
        drawn.append((p.item(), tuple(weights.shape[1:])))
        return weights

    monkeypatch.setattr(torch.nn.functional, "dropout", spy)
    monkeypatch.setattr(transformer, "tensor_dropout", spy_attention)
    model.train()(*inputs(model))

    expected = [(p["text_dropout"], (5, 768))]
    expected += [
        (p["output_dropout"], (width,)) for width in (3 * d, 9 * d, *3 * [d], *3 * [2 * d])
    ]
    of = {"l": p["attn_dropout"], "a": p["attn_dropout_a"], "v": p["attn_dropout_v"]}
    encoders = [(m, n, d, of[n], 2) for m in steps for n in steps if n != m]  # cross-modal
    encoders += [(m, None, d, of[m], 2) for m in steps]  # common
    encoders += [(m, None, 2 * d, p["attn_dropout"], 3) for m in steps]  # memory
    for m, source, width, attn_dropout, layers in encoders:
        t_q, t_s = steps[m], steps[source or m]
        expected += [
            (p["embed_dropout"], (t_q, width)),
            *2 * [(p["embed_dropout"], (t_s, width))] * bool(source),
        ]
        for layer in range(layers):
            if not source and layer == layers - 1:
                t_q = 1  # only the last step of what common parts and memories give is used
            expected += [(attn_dropout, (2, t_q, t_s)), (p["relu_dropout"], (t_q, 4 * width))]
            expected += 2 * [(p["res_dropout"], (t_q, width))]
    assert sorted(drawn) == sorted(expected)

    drawn.clear()
    model.eval()(*inputs(model))
    assert not drawn
