"""models/fast/ against its specification, the plain model: values, gradients, draws, and when it steps aside."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from config import load_config
from models import fast, transformer
from models.dmd import DMD
from models.fast import cpu
from models.transformer import CrossModalEncoder
from tests.commands import ROOT
from tests.reference import CASES, DROPOUTS, NO_DROPOUT, Reference
from trainers.losses import Objective


@pytest.fixture(params=["cpu", "generic"])
def form(request, monkeypatch) -> None:
    """Both forms of the operations: the CPU's, and those of other devices."""
    if request.param == "generic":
        monkeypatch.setattr(cpu, "eager", lambda x: False)


def encoders(count=3, dim=8, mask=True, **dropouts) -> list[CrossModalEncoder]:
    settings = dict.fromkeys(("attn_dropout", "relu_dropout", "res_dropout", "embed_dropout"), 0.0) | dropouts
    made = [CrossModalEncoder(dim, 2, 3, attn_mask=mask, **settings) for _ in range(count)]
    for parameter in (p for encoder in made for p in encoder.parameters()):
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("lengths", [(6, 6, 6), (4, 9, 7), (200, 150, 300)])
@pytest.mark.parametrize("kind", ["cross", "self", "self, last step"])
def test_encoders_together_give_what_each_gives_alone(form, kind, lengths, mask):
    torch.manual_seed(0)
    made = [encoder.double() for encoder in encoders(mask=mask)]
    queries = [torch.randn(2, t, 8, dtype=torch.double, requires_grad=True) for t in lengths]
    with torch.no_grad():
        queries[0][:, -2:] = 0  # padding
    sources = queries[1:] + queries[:1] if kind == "cross" else None
    results = []
    for run in (transformer.run_encoders, fast.run_encoders):
        outputs = run(made, queries, sources, last_step="last" in kind)
        leaves = [*queries, *(p for encoder in made for p in encoder.parameters())]
        gradients = torch.autograd.grad(sum(x.square().sum() for x in outputs), leaves)
        results.append(([*outputs], gradients))
    (plain, of_plain), (together, of_together) = results
    assert all(relative(x, y) <= 1e-6 for x, y in zip(together, plain, strict=True))
    for x, y in zip(of_together, of_plain, strict=True):
        # A key's bias moves all scores of a query alike: its true gradient is zero, compared with the others'.
        scale = y.abs().max().clamp(min=1e-6 * max(g.abs().max() for g in of_plain))
        assert (x - y).abs().max() <= 1e-5 * scale


def test_the_dropout_of_one_encoder_s_attention_is_its_own(form):
    made = encoders()
    queries = [torch.randn(2, 6, 8) for _ in made]
    without = fast.run_encoders(made, queries)
    for layer in made[0].layers:
        layer.self_attn.dropout = 0.5
    assert fast.applies(made)
    outputs = zip(fast.run_encoders(made, queries), without, strict=True)
    assert [torch.allclose(x, y, rtol=1e-4, atol=1e-4) for x, y in outputs] == [False, True, True]


def both_paths(args, model, objective, inputs, labels) -> list[tuple[dict, dict]]:
    """Outputs and losses, and gradients, of a step of the plain path and of the fast one."""
    results = []
    for args.fast in (False, True):
        model.zero_grad()
        output = model(*inputs)
        terms = objective(output, labels)
        terms["total"].backward()
        results.append((output.flat() | dict(terms), {n: p.grad for n, p in model.named_parameters()}))
    return results


def compare_paths(args, model, objective, inputs, labels) -> None:
    """In float64: in float32 they part by its rounding."""
    inputs = [x.double() for x in inputs]
    steps = both_paths(args, model.double(), objective.double(), inputs, labels.double())
    (plain, of_plain), (together, of_together) = steps
    for name, value in plain.items():
        assert relative(together[name], value) <= 1e-6, name
    for name, gradient in of_plain.items():
        if gradient is None:
            assert of_together[name] is None
        else:
            assert (of_together[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max().clamp(min=1e-6), name


@pytest.mark.parametrize("case", CASES)
def test_a_whole_step(form, case, tmp_path):
    """Outputs, losses and gradients of the reference cases."""
    reference = Reference(case, tmp_path)
    *inputs, labels = (reference.batch()[name] for name in ("text", "audio", "vision", "labels"))
    compare_paths(reference.args, *reference.build(), inputs, labels)


def test_a_whole_step_of_unaligned_lengths(form):
    args = load_config(
        "dmd", "mosi", overrides=NO_DROPOUT | {"use_bert": False, "need_data_aligned": False, "nlevels": 2}
    )
    args.seq_lens = [50, 150, 220]
    torch.manual_seed(0)
    inputs = [torch.randn(3, t, d) for t, d in zip(args.seq_lens, args.feature_dims, strict=True)]
    compare_paths(args, DMD(args), Objective(args), inputs, torch.tensor([[1.0], [1.0], [-2.0]]))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [[12, 12, 12], [8, 12, 16]], ids=["aligned", "unaligned"])
def test_dropout_draws_have_the_same_means_and_spreads(form, steps):
    """Each of the 38 outputs over many draws of every dropout: z of its mean, and its spread."""
    dropouts = {name: (1 + number % 3) / 10 for number, name in enumerate(DROPOUTS)}
    sizes = {"use_bert": False, "need_data_aligned": False, "dst_feature_dim_nheads": [8, 2]}
    args = load_config("dmd", "mosi", overrides=sizes | dropouts)
    args.seq_lens = steps
    torch.manual_seed(0)
    model = DMD(args).train()
    # Every draw is an utterance: the same one, over and over. A fixed projection makes a number of each output.
    draws = [torch.randn(1, t, d).expand(6000, -1, -1) for t, d in zip(steps, args.feature_dims, strict=True)]
    outputs = []
    for args.fast in (False, True):
        with torch.no_grad():
            outputs.append(model(*draws).flat())
    assert len(outputs[0]) == 38
    for name in outputs[0]:
        of_time = re.fullmatch("[sc]_[lav]", name)  # (T', B, d)
        rows = [(output[name].movedim(1, 0) if of_time else output[name]).flatten(1) for output in outputs]
        weights = torch.randn(rows[0].size(1), generator=torch.Generator().manual_seed(1))
        x, y = ((row @ weights).double() for row in rows)
        if x.std() < 1e-6 * x.abs().max():  # no dropout on the way to it: audio and vision features
            torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-6)
            continue
        assert abs(x.mean() - y.mean()) <= 5 * ((x.var() + y.var()) / len(x)).sqrt(), name
        assert abs(x.std() / y.std() - 1) <= 0.05, (name, x.std(), y.std())


class OwnLayer(transformer.Layer):
    pass


@pytest.mark.parametrize(
    "change",
    [
        lambda made: setattr(made[1].layers[0], "__class__", OwnLayer),
        lambda made: setattr(made[1].layers[0], "forward", lambda query, key, value, mask: query),
        lambda made: made[2].layers[1].fc2.register_forward_hook(lambda *arguments: None),
        lambda made: made[2].register_full_backward_hook(lambda *arguments: None),
        lambda made: made[0].eval(),
        lambda made: setattr(made[0].layers[1].dropout, "p", 0.5),
        lambda made: [setattr(encoder.layers[2].layer_norms[0], "eps", 1e-3) for encoder in made],
        lambda made: [encoder.layers[0].dropout.eval() for encoder in made],
        lambda made: [setattr(encoder.layers[2], "fc1", torch.nn.Linear(8, 64)) for encoder in made],
        lambda made: setattr(made[1], "embed", lambda x: x),
        lambda made: torch.nn.utils.parametrizations.weight_norm(made[0].layers[0].fc1),
    ],
)
def test_it_steps_aside_where_an_encoder_is_not_as_the_others(change):
    made = encoders()
    made[0].layers[0].self_attn.dropout = 0.3  # this may differ, and what is trained
    made[1].requires_grad_(False)
    assert fast.applies(made)
    change(made)
    assert not fast.applies(made)


@pytest.mark.parametrize(
    ("owner", "name"), [(transformer.Layer, "forward"), (torch.nn.Linear, "forward"), (transformer, "causal_mask")]
)
def test_it_steps_aside_where_a_class_is_changed(monkeypatch, owner, name):
    made = encoders()
    monkeypatch.setattr(owner, name, lambda *arguments: arguments[0])
    assert not fast.applies(made)


def test_it_steps_aside_where_the_specification_was_edited(tmp_path):
    """A researcher writes GELU for ReLU into a copy of models/transformer.py: it takes effect, with a warning."""
    shutil.copytree(ROOT / "models", tmp_path / "models")
    file = tmp_path / "models/transformer.py"
    file.write_text(file.read_text(encoding="utf-8").replace("F.relu", "F.gelu"), encoding="utf-8")
    program = "from models import fast, transformer\n"
    program += "made = transformer.CrossModalEncoder(8, 2, 2, 0.0, 0.0, 0.0, 0.0, True)\n"
    program += "print(fast.__file__, fast.applies([made, made]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "models/fast/__init__.py"), "False"]
    assert "models/transformer.py has been edited" in done.stderr


def test_the_specification_is_the_present_one():
    """Where models/transformer.py has changed, models/fast/encoders.py must compute the same again; SPECIFICATION in
    models/fast/__init__.py is then the SHA-256 of its text."""
    assert not fast.EDITED


@pytest.mark.parametrize(("t_q", "t_s"), [(5, 9), (200, 150)])
def test_attention_with_scores_of_hundreds(t_q, t_s):
    """Their exponentials overflow unless they are shifted. Values and gradients are those of PyTorch's form."""

    def of_pytorch(q, k, v, heads, causal, dropouts):
        mask = transformer.causal_mask(q.size(1), k.size(1), q.device)
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)

    torch.manual_seed(0)
    tensors = [torch.randn(4, t, 8) * scale for t, scale in ((t_q, 10), (t_s, 10), (t_s, 1))]
    results = []
    for attention in (cpu.Attention.apply, of_pytorch):
        leaves = [x.clone().requires_grad_() for x in tensors]
        output = attention(*leaves, 2, True, (0.0, 0.0))
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        # A score's rounding error, relative to 1, is that of its exponential.
        assert (ours - theirs).abs().max() <= 2e-4 * theirs.abs().max()


def test_gradients_under_dropout_are_those_of_the_same_draw():
    """Against differences: the draws are equal where the seed is."""
    torch.manual_seed(0)
    tensors = [torch.randn(shape, requires_grad=True) for shape in [(4, 6, 8), (4, 9, 8), (4, 9, 8)]]
    seen_by = torch.randn(4, 6, 8)

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        return (cpu.Attention.apply(*tensors, 2, True, (0.3, 0.0)) * seen_by).double().sum()

    loss().backward()
    for tensor in tensors:
        direction = torch.randn(tensor.shape)
        with torch.no_grad():
            values = []
            for step in (1e-3, -2e-3):
                tensor += step * direction
                values.append(loss())
            tensor += 1e-3 * direction
        slope = (values[0] - values[1]) / 2e-3
        assert slope.item() == pytest.approx((tensor.grad * direction).sum().item(), rel=0.02, abs=0.05)


def test_backward_leaves_the_gradient_it_is_given_and_nan_is_passed_on():
    """With one head, or one query, heads are a view of what comes in."""
    for heads, t_q in ((1, 5), (2, 1)):
        q, k, given = torch.ones(3, t_q, 8, requires_grad=True), torch.ones(3, 6, 8), torch.ones(3, t_q, 8)
        cpu.Attention.apply(q, k, k, heads, False, (0.0,)).backward(given)
        assert (given == 1).all()
    assert cpu.Attention.apply(q * torch.nan, k, k, 2, False, (0.0,)).isnan().any()


def test_dropout_keeps_the_stated_part_and_the_mean():
    torch.manual_seed(0)
    for p in (0.1, 0.3, 0.5):
        x = torch.ones(400, 1000, requires_grad=True)
        dropped = cpu.dropout(x, p)
        assert dropped.count_nonzero().item() / x.numel() == pytest.approx(
            1 - p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5
        )
        assert dropped.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)
        dropped.sum().backward()
        assert torch.equal(x.grad, dropped)
    assert cpu.dropout(x, 0) is x and cpu.dropout(x, 0.5, training=False) is x
    assert cpu.dropout(torch.ones(100), 0.999999).isfinite().all() and not cpu.dropout(torch.ones(100), 1.0).any()


def test_neighbouring_dropout_draws_are_independent():
    torch.manual_seed(0)
    kept = cpu.dropout(torch.ones(2**10, 2**10), 0.3).ne(0).flatten().double()
    for lag in range(1, 9):  # eight draws share a random number
        agreement = (kept[lag:] == kept[:-lag]).double().mean().item()
        assert agreement == pytest.approx(0.7**2 + 0.3**2, abs=4 * 0.5 / 2**10)


def test_attention_of_another_model_drops_weights_and_keeps_the_mean():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 6, 8)
    seen = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    seen[0, :, :, 4:] = False
    exact = F.scaled_dot_product_attention(q, k, v, seen)
    with cpu.CpuForms():
        assert torch.equal(F.scaled_dot_product_attention(q, k, v, attn_mask=seen), exact)
        draws = torch.stack([F.scaled_dot_product_attention(q, k, v, seen, 0.2, scale=8**-0.5) for _ in range(900)])
    assert ((draws.mean(dim=0) - exact).abs() < 5 * draws.std(dim=0) / 30).all()
    assert (draws[0] != draws[1]).any()
