"""Non-finite values stop training before they reach the weights."""

import math

import pytest
import torch

from dataset.loaders import UtteranceDataset
from tests.reference import Reference, make_loader
from trainers.trainer import Trainer
from utils.errors import NumericalError


@pytest.fixture
def trainer(tmp_path) -> Trainer:
    """Two batches of 4 utterances, a step for both together."""
    reference = Reference("mosei_aligned", tmp_path)
    reference.args.update_epochs, reference.args.batch_size = 2, 4
    loaders = {"train": make_loader(UtteranceDataset(reference.split(slice(8))), 4)}
    return Trainer(reference.args, *reference.build(), loaders, torch.device("cpu"))


def test_infinite_gradient_is_not_hidden_by_clipping(trainer):
    """All losses are finite; the gradient of one bias is infinite in the second batch."""
    batches = []
    trainer.model.out_layer.bias.register_hook(
        lambda g: batches.append(g) or (g * math.inf if len(batches) > 1 else g)
    )
    before = [p.detach().clone() for p in trainer.all_parameters]
    trainer.epoch = 3
    with pytest.raises(NumericalError, match=r"epoch 3: .* a gradient .*utterance4, utterance5"):
        trainer.train_epoch()
    assert all(map(torch.equal, trainer.all_parameters, before))


def test_error_names_the_utterance_with_extreme_features(trainer):
    trainer.loaders["train"].dataset.tensors["audio"][6] = 1e38
    before = [p.detach().clone() for p in trainer.all_parameters]
    with pytest.raises(
        NumericalError, match=r"the loss term \S+ is not finite, .*utterance6"
    ) as error:
        trainer.train_epoch()
    assert "utterance5" not in str(error.value)
    assert all(map(torch.equal, trainer.all_parameters, before))
    with pytest.raises(
        NumericalError,
        match="train: the predictions for 1 of 8 utterances are not finite: utterance6",
    ):
        trainer.evaluate("train")
