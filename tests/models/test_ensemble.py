"""Encoders that run together, as on a GPU, match a loop over them; others run separately."""

import sys

import pytest
import torch

from config import load_config
from models import ensemble, transformer
from models.dmd import DMD
from models.transformer import CrossModalEncoder
from tests.models.paths import relative, use_path
from tests.reference import CASES, NO_DROPOUT, Reference
from trainers.losses import Objective

LABELS = torch.tensor([[1.0], [1.0], [-2.0]])


def make_encoders(count=3, dim=8, attn_mask=True, **dropouts) -> list[CrossModalEncoder]:
    settings = (
        dict.fromkeys(("attn_dropout", "relu_dropout", "res_dropout", "embed_dropout"), 0.0)
        | dropouts
    )
    encoders = [CrossModalEncoder(dim, 2, 3, attn_mask=attn_mask, **settings) for _ in range(count)]
    for encoder in encoders:
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return encoders


def make_model(steps=(12, 12, 12), **overrides):
    """A small model without dropout, its objective and a batch of three."""
    sizes = {"use_bert": False, "need_data_aligned": False, "nlevels": 2}
    args = load_config("dmd", "mosi", overrides=NO_DROPOUT | sizes | overrides)
    args.seq_lens = list(steps)
    torch.manual_seed(0)
    inputs = [torch.randn(3, t, d) for t, d in zip(args.seq_lens, args.feature_dims, strict=True)]
    return DMD(args), Objective(args), inputs


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """The number of encoders of each run of several together."""
    numbers = []
    run_together = ensemble.run_together

    def spy(encoders, *arguments):
        numbers.append(len(encoders))
        return run_together(encoders, *arguments)

    monkeypatch.setattr(ensemble, "run_together", spy)
    return numbers


@pytest.mark.parametrize("kind", ["cross", "self", "self, last step"])
@pytest.mark.parametrize("attn_mask", [True, False], ids=["causal", "full"])
def test_encoders_run_together_match_separate_encoders(kind, attn_mask):
    torch.manual_seed(0)
    encoders = [encoder.double() for encoder in make_encoders(attn_mask=attn_mask)]
    queries = [torch.randn(2, 6, 8, dtype=torch.double, requires_grad=True) for _ in encoders]
    with torch.no_grad():
        queries[0][:, -2:] = 0  # padding
    sequences = [queries, queries[1:] + queries[:1]] if kind == "cross" else [queries]
    last_step = "last" in kind
    assert ensemble.are_alike(encoders, sequences)
    together = ensemble.run_together(encoders, sequences, last_step)
    alone = [
        e(*inputs, last_step=last_step) for e, *inputs in zip(encoders, *sequences, strict=True)
    ]
    leaves = [*queries, *(p for encoder in encoders for p in encoder.parameters())]
    gradients = [
        torch.autograd.grad(sum(x.square().sum() for x in xs), leaves) for xs in (together, alone)
    ]
    for x, y in zip(together, alone, strict=True):
        assert relative(x, y) <= 1e-9
    largest = max(gradient.abs().max() for gradient in gradients[1])
    for x, y in zip(*gradients, strict=True):
        assert (x - y).abs().max() <= 1e-9 * largest


def step(model, objective, inputs, labels=LABELS) -> dict[str, torch.Tensor]:
    """Every loss, and every gradient, of a training step."""
    model.zero_grad()
    objective.zero_grad()
    terms = objective(model(*inputs).map(torch.Tensor.float), labels)
    terms["total"].backward()
    values = {name: value.detach() for name, value in terms.items()}
    for name, parameter in (*model.named_parameters(), *objective.named_parameters()):
        if parameter.grad is not None:
            values[f"gradient of {name}"] = parameter.grad
    return values


def compare_steps(
    model, objective, inputs, labels, monkeypatch, paths=("plain", "together"), tolerance=1e-6
) -> None:
    steps = []
    for path in paths:
        use_path(model, path, monkeypatch)
        steps.append(step(model, objective, inputs, labels))
    plain, other = steps
    assert plain.keys() == other.keys()
    for name, value in plain.items():
        # The true gradient of an attention key's bias is zero.
        scale = value.abs().max().clamp(min=1e-3)
        assert (other[name] - value).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("path", ["fast", "together"])
@pytest.mark.parametrize("case", CASES)
def test_step_of_a_reference_case_matches_the_plain_step(case, path, tmp_path, monkeypatch):
    """In float64, because in float32 the results differ by rounding."""
    reference = Reference(case, tmp_path)
    *inputs, labels = (
        reference.batch()[name].double() for name in ("text", "audio", "vision", "labels")
    )
    model, objective = (module.double() for module in reference.build())
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)
    compare_steps(model, objective, inputs, labels, monkeypatch, ("plain", path))


@pytest.mark.parametrize("path", ["fast", "together"])
def test_step_of_unaligned_lengths_matches_the_plain_step(path, monkeypatch):
    model, objective, inputs = make_model((50, 150, 220))
    inputs = [x.double() for x in inputs]
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)
    compare_steps(
        model.double(), objective.double(), inputs, LABELS.double(), monkeypatch, ("plain", path)
    )


@pytest.mark.parametrize(
    "frozen", ["", "trans_l_with_a", "trans_a_mem.layers.1"], ids=["none", "one", "layer"]
)
def test_frozen_encoders_get_no_gradient_and_the_others_the_same(frozen, runs, monkeypatch):
    model, objective, inputs = make_model()
    if frozen:
        model.get_submodule(frozen).requires_grad_(False)
    compare_steps(model, objective, inputs, LABELS, monkeypatch, tolerance=1e-4)
    assert runs == [3, 6, 3]
    for name, parameter in model.named_parameters():
        is_frozen = frozen and name.startswith(f"{frozen}.")
        assert not is_frozen or parameter.grad is None


def test_autocast_to_bf16_matches_the_plain_step(runs, monkeypatch):
    model, objective, inputs = make_model()
    losses, norms = [], []
    for path in ("plain", "together"):
        use_path(model, path, monkeypatch)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(*inputs)
        terms = objective(output.map(torch.Tensor.float), LABELS)
        model.zero_grad()
        terms["total"].backward()
        losses.append(terms["total"].item())
        norms.append(
            torch.nn.utils.get_total_norm(
                [p.grad for p in model.parameters() if p.grad is not None]
            )
        )
    assert runs == [3, 6, 3]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert norms[1].item() == pytest.approx(norms[0].item(), rel=2e-2)


def test_inference_mode_matches_the_plain_loop(runs, monkeypatch):
    model, _, inputs = make_model()
    model.eval()
    predictions = []
    for path in ("plain", "together"):
        use_path(model, path, monkeypatch)
        with torch.inference_mode():
            predictions.append(model(*inputs).output_logit)
    assert runs == [3, 6, 3]
    torch.testing.assert_close(*predictions)


def test_encoders_of_different_lengths_run_separately(runs, monkeypatch):
    model, _, inputs = make_model((12, 14, 16))
    use_path(model, "together", monkeypatch)
    model(*inputs)
    assert not runs


def test_each_encoder_has_its_own_dropout_of_attention():
    encoders = make_encoders()
    queries = [torch.randn(2, 6, 8) for _ in encoders]
    without = ensemble.run_together(encoders, [queries], False)
    for layer in encoders[0].layers:
        layer.self_attn.dropout.fill_(0.5)
    assert ensemble.are_alike(encoders, [queries])
    outputs = ensemble.run_together(encoders, [queries], False)
    same = [
        torch.allclose(x, y, rtol=1e-4, atol=1e-4) for x, y in zip(outputs, without, strict=True)
    ]
    assert same == [False, True, True]


@pytest.mark.parametrize(
    "dropout", ["attn_dropout", "relu_dropout", "res_dropout", "embed_dropout"]
)
def test_encoders_draw_their_dropout_independently(dropout):
    first, second = make_encoders(2, **{dropout: 0.5})
    second.load_state_dict(first.state_dict())
    query = torch.randn(2, 6, 8)
    one, other = ensemble.run_together([first, second], [[query, query]], False)
    assert not torch.allclose(one, other)


class OwnLayer(transformer.Layer):
    pass


UNLIKE = {
    "class of a layer": lambda made: setattr(made[1].layers[0], "__class__", OwnLayer),
    "forward": lambda made: setattr(
        made[1].layers[0], "forward", lambda query, key, value, causal: query
    ),
    "forward hook": lambda made: (
        made[2].layers[1].fc2.register_forward_hook(lambda *arguments: None)
    ),
    "backward hook": lambda made: made[2].register_full_backward_hook(lambda *arguments: None),
    "training mode": lambda made: made[0].eval(),
    "training mode of a module": lambda made: made[0].layers[0].dropout.eval(),
    "dropout": lambda made: setattr(made[0].layers[1].dropout, "p", 0.5),
    "eps": lambda made: setattr(made[1].layers[2].layer_norms[0], "eps", 1e-3),
    "width": lambda made: setattr(made[0].layers[2], "fc1", torch.nn.Linear(8, 64)),
    "embed": lambda made: setattr(made[1], "embed", lambda x: x),
    "heads": lambda made: setattr(made[1].layers[0].self_attn, "num_heads", 4),
    "mask": lambda made: setattr(made[1], "attn_mask", False),
    "type": lambda made: made[1].double(),
    "attribute with a tensor": lambda made: setattr(made[1], "seen", torch.ones(2)),
    "parametrization": lambda made: torch.nn.utils.parametrizations.weight_norm(
        made[0].layers[0].fc1
    ),
    "layers": lambda made: made[2].layers.append(transformer.Layer(8, 2, 0.0, 0.0, 0.0)),
}


@pytest.mark.parametrize("change", UNLIKE.values(), ids=UNLIKE)
def test_different_encoders_run_separately(change):
    encoders = make_encoders()
    queries = [[torch.randn(2, 6, 8) for _ in encoders]]
    encoders[0].layers[0].self_attn.dropout.fill_(0.3)  # this may differ, and which are trained
    encoders[1].requires_grad_(False)
    assert ensemble.are_alike(encoders, queries)
    change(encoders)
    assert not ensemble.are_alike(encoders, queries)


def test_global_hooks_see_every_encoder_separately():
    encoders = make_encoders()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *arguments: None)
    try:
        assert not ensemble.are_alike(encoders, [[torch.randn(2, 6, 8) for _ in encoders]])
    finally:
        handle.remove()


@pytest.mark.parametrize("path", ["plain", "fast", "together"])
@pytest.mark.parametrize("use_bert", [False, True], ids=["features", "bert"])
def test_replicas_of_data_parallel_match_the_model(path, use_bert, monkeypatch):
    """Replicas as in nn.DataParallel, except that the copies of parameters are on the CPU."""

    def copy_parameters(parameters, devices, detach=False):
        return [[p.detach().clone() if detach else p.clone() for p in parameters] for _ in devices]

    module = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", copy_parameters)
    if use_bert:
        overrides = {
            "use_bert": True,
            "pretrained": "dataset/synthetic_bert",
            "feature_dims": [64, 5, 20],
        }
    else:
        overrides = {}
    model, _, inputs = make_model((12, 12, 12), **overrides)
    if use_bert:
        ids = torch.randint(5, 60, (3, 12))
        inputs[0] = torch.stack([ids, torch.ones_like(ids), torch.zeros_like(ids)], dim=1).float()
    model.eval()
    use_path(model, path, monkeypatch)
    expected = model(*inputs).output_logit
    expected.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    replicas = torch.nn.parallel.replicate(model, [0, 1])
    assert not list(replicas[0].parameters())
    for replica in replicas:
        torch.testing.assert_close(replica(*inputs).output_logit, expected)
    replicas[1](*inputs).output_logit.sum().backward()
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_outputs_of_data_parallel_are_gathered(monkeypatch):
    """Gathered as in nn.DataParallel, except that tensors are joined on the CPU."""

    class JoinOnCpu:
        @staticmethod
        def apply(device, dim, *tensors):
            return torch.cat(tensors, dim)

    module = sys.modules["torch.nn.parallel.scatter_gather"]
    monkeypatch.setattr(module, "Gather", JoinOnCpu)
    model, _, inputs = make_model((12, 12, 12))
    model.eval()
    expected = model(*inputs).flat()
    halves = [model(*(x[:2] for x in inputs)), model(*(x[2:] for x in inputs))]
    gathered = torch.nn.parallel.gather(halves, 0).flat()
    torch.testing.assert_close(gathered["output_logit"], expected["output_logit"])
    torch.testing.assert_close(gathered["recon_a"], expected["recon_a"])
