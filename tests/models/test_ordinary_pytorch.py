"""Common operations of PyTorch users on models work as usual, on every path."""

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn
from transformers import BertConfig

from models.transformer import Layer
from tests.models.paths import PATHS, use_path
from tests.reference import NO_DROPOUT
from tests.trainers.test_switches import make_batch, make_trainer
from trainers.trainer import Trainer

LABELS = [1.0, 1.0, -2.0]


@pytest.fixture(params=PATHS)
def trainer(request, tmp_path, monkeypatch) -> Trainer:
    """A trainer without any dropout, BERT's included, whose batch is a step."""
    silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertConfig.from_pretrained("dataset/synthetic_bert", **silent).save_pretrained(tmp_path)
    settings = {"pretrained": str(tmp_path), "update_epochs": 1} | NO_DROPOUT
    trainer = make_trainer([make_batch(0, LABELS)], fast=request.param != "plain", **settings)
    use_path(trainer.model, request.param, monkeypatch)
    return trainer


def output_and_terms(trainer: Trainer):
    batch = make_batch(0, LABELS)
    output = trainer.model(batch["text"], batch["audio"], batch["vision"])
    return output, trainer.objective(output, batch["labels"])


def moved(trainer: Trainer, train=None) -> set[str]:
    """The parameters that a training step changes: those with a gradient other than zero."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    (train or trainer.train_epoch)()
    return {
        name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])
    }


@pytest.mark.parametrize(
    "frozen",
    ["trans_l_with_a", "trans_a_mem.layers.1", "self_attentions_c_v", "proj_v", "text_model"],
)
def test_only_frozen_parameters_stay_unchanged(trainer, frozen):
    everything = moved(copy.deepcopy(trainer))
    trainer.model.get_submodule(frozen).requires_grad_(False)
    assert moved(trainer) == {name for name in everything if not name.startswith(f"{frozen}.")}


@pytest.mark.parametrize("way", ["optimizer", "modules"])
def test_every_kind_of_zero_grad_works(trainer, way):
    trainer.training_step(make_batch(1, LABELS))
    if way == "optimizer":
        trainer.optimizer.zero_grad()
    else:
        trainer.model.zero_grad(set_to_none=False)
        trainer.objective.zero_grad(set_to_none=False)
    trainer.training_step(make_batch(0, LABELS))
    got = {
        name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None
    }
    trainer.optimizer.zero_grad()
    trainer.training_step(make_batch(0, LABELS))
    for name, gradient in got.items():
        expected = trainer.model.get_parameter(name).grad
        assert not gradient.any() if expected is None else torch.equal(gradient, expected), name
    assert moved(trainer, trainer.optimizer.step)


def test_gradients_of_loss_terms_add_up(trainer):
    """torch.autograd.grad of each loss term leaves .grad unset, and the gradients add up to that of
    the sum.
    """
    _, terms = output_and_terms(trainer)
    encoders = [
        p for name, p in trainer.model.named_parameters() if "_with_" in name or "_mem" in name
    ]
    of_all = torch.autograd.grad(terms["task/all"], encoders, retain_graph=True)
    of_text = torch.autograd.grad(
        terms["task/l_hetero"], encoders, retain_graph=True, allow_unused=True
    )
    together = torch.autograd.grad(terms["task/all"] + terms["task/l_hetero"], encoders)
    assert all(p.grad is None for p in trainer.all_parameters)
    for one, two, both in zip(of_all, of_text, together, strict=True):
        torch.testing.assert_close(one if two is None else one + two, both, rtol=1e-3, atol=1e-5)


def test_bert_can_have_its_own_parameter_group():
    trainer = make_trainer(
        [make_batch(0, LABELS)], learning_rate_bert=1e-6, update_epochs=1, **NO_DROPOUT
    )
    rates = [(group["lr"], len(group["params"])) for group in trainer.optimizer.param_groups]
    bert = list(trainer.model.text_model.parameters())
    assert rates == [
        (trainer.args.learning_rate, len(trainer.all_parameters) - len(bert)),
        (1e-6, len(bert)),
    ]
    before = [p.detach().clone() for p in trainer.all_parameters]
    trainer.train_epoch()
    # Adam's first step is the learning rate, wherever the gradient is not zero.
    largest = {
        name: max(
            (p - b).abs().max().item()
            for p, b in zip(trainer.all_parameters, before, strict=True)
            if (p in set(bert)) == (name == "bert")
        )
        for name in ("bert", "rest")
    }
    assert largest["bert"] == pytest.approx(1e-6, rel=0.1)
    assert largest["rest"] == pytest.approx(trainer.args.learning_rate, rel=0.01)


def test_hooks_on_parameters_and_modules_are_called(trainer):
    fired, seen = set(), []
    for name, parameter in trainer.model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: fired.add(name))
    layer = trainer.model.trans_l_with_a.layers[0].fc1
    handle = layer.register_forward_hook(lambda *args: seen.append(args[2].shape))
    output, terms = output_and_terms(trainer)
    assert seen == [(3, output.specific["l"].size(1), 4 * trainer.model.d)]
    handle.remove()
    torch.testing.assert_close(
        output_and_terms(trainer)[0].output_logit, output.output_logit, rtol=1e-4, atol=1e-5
    )
    assert len(seen) == 1
    terms["total"].backward()
    assert (
        fired == {name for name, p in trainer.model.named_parameters() if p.grad is not None}
        and len(fired) > 300
    )


def test_deepcopy_is_independent(trainer):
    twin = copy.deepcopy(trainer.model)
    before = {name: x.clone() for name, x in twin.state_dict().items()}
    trainer.train_epoch()
    assert all(torch.equal(x, before[name]) for name, x in twin.state_dict().items())
    batch = make_batch(0, LABELS)
    assert not torch.equal(
        twin(batch["text"], batch["audio"], batch["vision"]).output_logit,
        output_and_terms(trainer)[0].output_logit,
    )


def test_saved_tensor_has_only_its_own_storage(trainer):
    trainer.train_epoch()
    parameter = trainer.model.trans_l_with_a.layers[0].fc1.weight
    file = io.BytesIO()
    torch.save(parameter, file)
    assert file.tell() < parameter.nbytes + 4096


def test_functional_call_uses_the_given_parameters(trainer):
    batch = make_batch(0, LABELS)
    inputs = (batch["text"], batch["audio"], batch["vision"])
    other = {name: p.detach() * 1.1 for name, p in trainer.model.named_parameters()}
    called = torch.func.functional_call(trainer.model, other, inputs).output_logit
    twin = copy.deepcopy(trainer.model)
    twin.load_state_dict(other, strict=False)
    torch.testing.assert_close(called, twin(*inputs).output_logit)
    assert not torch.allclose(called, trainer.model(*inputs).output_logit)

    def loss(parameters):
        return (
            torch.func.functional_call(trainer.model, parameters, inputs)
            .output_logit.square()
            .sum()
        )

    parameters = {
        name: p
        for name, p in trainer.model.named_parameters()
        if "_with_" in name or "out_layer." in name
    }
    of_func = torch.func.grad(loss)({name: p.detach() for name, p in parameters.items()})
    for got, expected in zip(
        of_func.values(), torch.autograd.grad(loss({}), parameters.values()), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


def test_model_runs_in_bf16(trainer):
    expected = output_and_terms(trainer)[0].output_logit
    trainer.model.to(torch.bfloat16)
    batch = make_batch(0, LABELS)
    output = trainer.model(batch["text"], batch["audio"].bfloat16(), batch["vision"].bfloat16())
    assert output.output_logit.dtype == torch.bfloat16
    torch.testing.assert_close(output.output_logit.float(), expected, rtol=0.1, atol=0.1)
    output.output_logit.sum().backward()
    assert trainer.model.trans_l_with_a.layers[0].fc1.weight.grad.isfinite().all()


class SineLayer(Layer):
    """A custom layer, with an activation that `Layer` does not have."""

    def forward(self, query, key, value, mask=None):
        norm, norm_ffn = self.layer_norms
        query = query + self.dropout(self.self_attn(norm(query), norm(key), norm(value), mask))
        return query + self.dropout(self.fc2(torch.sin(self.fc1(norm_ffn(query)))))


def test_custom_layer_takes_effect(trainer, monkeypatch):
    """The change affects the output, in the same way on all paths."""
    before = output_and_terms(trainer)[0].output_logit
    for module in trainer.model.modules():
        if type(module) is Layer:
            module.__class__ = SineLayer
    with_sine = output_and_terms(trainer)[0].output_logit
    assert (with_sine - before).abs().max() > 1e-4
    use_path(trainer.model, "plain", monkeypatch)
    torch.testing.assert_close(output_and_terms(trainer)[0].output_logit, with_sine)
    trainer.train_epoch()


def test_custom_head_takes_effect(trainer):
    class Linear(nn.Module):
        def forward(self, z, proj1, proj2, out_layer):
            hidden = proj1(z)
            return out_layer(z), hidden, z

    trainer.model.head = Linear()
    output, _ = output_and_terms(trainer)
    expected = trainer.model.out_layer_l_high(output.last_h["l"])
    torch.testing.assert_close(output.logits_hetero["l"], expected)


def test_edit_of_the_layer_class_takes_effect(trainer, monkeypatch):
    before = output_and_terms(trainer)[0].output_logit
    monkeypatch.setattr(Layer, "forward", SineLayer.forward)
    assert (output_and_terms(trainer)[0].output_logit - before).abs().max() > 1e-4


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
def test_trainer_is_freed_with_its_last_reference(fast):
    """Otherwise each seed would hold GPU memory until Python's garbage collector runs."""
    trainer = make_trainer([make_batch(0, LABELS)], fast=fast)
    trainer.train_epoch()
    parts = [
        weakref.ref(part) for part in (trainer, trainer.model, trainer.objective, trainer.optimizer)
    ]
    gc.disable()
    try:
        del trainer
        assert not any(part() for part in parts)
    finally:
        gc.enable()
