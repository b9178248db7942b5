"""The order of utterances depends only on the seed."""

import torch

from dataset.features import prepare_features
from dataset.loaders import make_loaders
from tests.dataset.test_features import make_content, settings, write


def orders(features, seed, epochs=2):
    loader = make_loaders(features, batch_size=4, eval_batch_size=4, seed=seed)["train"]
    return [
        torch.cat([batch["labels"] for batch in loader]).flatten().tolist() for _ in range(epochs)
    ]


def test_shuffling_depends_on_the_seed_only(tmp_path):
    features = prepare_features(settings(write(tmp_path / "a.pkl", make_content())))
    first = orders(features, seed=1)
    torch.manual_seed(99)
    torch.rand(5)
    assert orders(features, seed=1) == first
    assert orders(features, seed=2) != first
    assert first[0] != first[1] and sorted(first[0]) == sorted(first[1])
