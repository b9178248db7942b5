"""DMD at the sizes of all kinds of data."""

from collections import Counter

import pytest
import torch

from config import load_config
from models import kernels
from models.dmd import DMD
from trainers.losses import Objective


def build(seq_lens=(50, 50, 50), **overrides):
    args = load_config("dmd", "mosi", overrides={"use_bert": False, "nlevels": 1} | overrides)
    args.seq_lens = list(seq_lens)
    torch.manual_seed(0)
    return DMD(args), Objective(args)


def inputs(model, batch=2):
    generator = torch.Generator().manual_seed(1)
    sizes = zip(model.args.seq_lens, model.args.feature_dims, strict=True)
    return [torch.randn(batch, steps, width, generator=generator) for steps, width in sizes]


def gradients_are_finite(model, objective, arguments, labels) -> bool:
    total = objective(model(*arguments), labels)["total"]
    total.backward()
    return torch.isfinite(total) and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dataset_dims", [[768, 5, 20], [300, 74, 35]])
def test_unaligned_lengths(dataset_dims):
    model, objective = build((50, 375, 500), feature_dims=dataset_dims)
    output = model(*inputs(model))
    assert output["c_a"].shape == (371, 2, 50) and output.s_v.shape == (496, 2, 50)
    assert model.align_c_v.in_features == 496 * 50
    assert gradients_are_finite(model, objective, inputs(model), torch.tensor([[1.0], [-1.0]]))


def test_a_modality_as_wide_as_the_model_is_not_convolved():
    """The released code crashes here: its flattened layers count on the steps that a convolution leaves."""
    model, objective = build(feature_dims=[768, 50, 20])
    assert model.align_c_a.in_features == 50 * 50 and model.align_c_l.in_features == 46 * 50
    assert "proj_a.weight" in model.state_dict()
    assert gradients_are_finite(model, objective, inputs(model), torch.tensor([[1.0], [-1.0]]))


def test_a_dead_modality_and_a_batch_of_one():
    model, objective = build()
    text, audio, vision = inputs(model, batch=1)
    assert gradients_are_finite(model, objective, (text, audio, 0 * vision), torch.tensor([[0.0]]))


def test_the_same_seed_gives_the_same_weights():
    first, second = build()[0].state_dict(), build()[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_each_dropout_acts_where_it_should(monkeypatch):
    """Every setting has a probability of its own, and every modality a length, so that each draw tells whose it is."""
    settings = ("text_dropout", "output_dropout", "attn_dropout", "attn_dropout_a", "attn_dropout_v",
                "relu_dropout", "embed_dropout", "res_dropout")  # fmt: skip
    p = {name: (number + 1) / 16 for number, name in enumerate(settings)}
    steps = {"l": 5, "a": 6, "v": 7}  # after convolutions of 1
    kernel_sizes = {f"conv1d_kernel_size_{m}": 1 for m in steps}
    model, _ = build((5, 6, 7), dst_feature_dim_nheads=[8, 2], nlevels=2, need_data_aligned=False, **p, **kernel_sizes)
    drawn, attended, fed = Counter(), Counter(), []

    def spy(module, name, note):
        real = getattr(module, name)

        def spied(*arguments, **more):
            note(*arguments, **more)
            return real(*arguments, **more)

        monkeypatch.setattr(module, name, spied)

    def note_attention(q, k, v, heads, causal, dropouts):
        attended.update((q.size(2), q.size(1), k.size(1), probability) for probability in dropouts)

    spy(torch.nn.functional, "dropout", lambda x, p, training: drawn.update([(p, x.size(-1))]))
    spy(kernels, "dropout", lambda x, p: drawn.update([p]))
    spy(kernels, "attention", note_attention)
    spy(kernels, "feed_forward", lambda *arguments: fed.append(arguments[-1]))
    model.train()(*inputs(model))

    d, text_width = 8, model.args.feature_dims[0]
    assert drawn[p["text_dropout"], text_width] == 1
    widths = {d: 3, 2 * d: 3, 3 * d: 1, 9 * d: 1}  # heads: homogeneous, heterogeneous, common, all
    assert {width: drawn[p["output_dropout"], width] for width in widths} == widths
    layers = {"cross-modal": 2, "memory": 3, "common": 2}
    assert drawn[p["embed_dropout"]] == 3 + 1 + 1  # of query, key and value, and of self-attention's one input
    assert drawn[p["res_dropout"]] == 2 * sum(layers.values())
    assert set(fed) == {p["relu_dropout"]} and len(fed) == sum(layers.values())
    own = {"l": p["attn_dropout"], "a": p["attn_dropout_a"], "v": p["attn_dropout_v"]}
    expected = Counter()
    for m in steps:
        expected.update({(d, steps[m], steps[n], own[n]): layers["cross-modal"] for n in steps if n != m})
        # Of the last layers only the last step is asked for.
        expected.update({(d, steps[m], steps[m], own[m]): layers["common"] - 1, (d, 1, steps[m], own[m]): 1})
        memory = p["attn_dropout"]
        expected.update({(2 * d, steps[m], steps[m], memory): layers["memory"] - 1, (2 * d, 1, steps[m], memory): 1})
    assert attended == expected

    drawn.clear()
    attended.clear()
    model.eval()(*inputs(model))
    assert {probability for *_, probability in attended} == {0.0} and not drawn[p["res_dropout"]]


def test_output_speaks_both_names():
    model, _ = build()
    output = model(*inputs(model))
    assert output.s_l is output.specific["l"] is output["s_l"] is dict(output)["s_l"]
    with pytest.raises(AttributeError, match="proj_s_l"):
        _ = output.proj_s_l
