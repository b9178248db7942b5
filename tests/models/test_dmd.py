"""DMD at the sizes of all kinds of data."""

import pytest
import torch

from config import load_config
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


def test_output_speaks_both_names():
    model, _ = build()
    output = model(*inputs(model))
    assert output.s_l is output.specific["l"] is output["s_l"] is dict(output)["s_l"]
    with pytest.raises(AttributeError, match="proj_s_l"):
        _ = output.proj_s_l
