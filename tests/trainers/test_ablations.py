"""Settings of ablations switch off the intended parts; modalities can be masked."""

import pytest
import torch

from config import load_config
from dataset.features import Split
from dataset.loaders import UtteranceDataset
from models.dmd import DMD, STACK_ORDER
from tests.reference import make_loader
from tests.trainers.test_switches import make_batch, make_trainer
from trainers.evaluate import inspect
from utils.errors import ConfigError

LABELS = [1.0, 1.0, -2.0, 0.4]
FIELDS = {"text": "l", "audio": "a", "vision": "v"}


def evaluated(**overrides):
    """-> (trainer of a model in eval mode, a batch, the model's output for it)"""
    trainer, batch = make_trainer(**overrides), make_batch(0, LABELS)
    trainer.model.eval()
    return trainer, batch, trainer.model(*(batch[field] for field in FIELDS))


def test_without_decoupling_both_parts_are_the_projected_features():
    trainer, batch, output = evaluated(feature_decoupling=False, lambda_decoupling=0)
    for m in STACK_ORDER:
        assert torch.equal(output.specific[m], output.origin[m]) and torch.equal(
            output.common[m], output.origin[m]
        )
    trainer.training_step(batch)
    for name in ("encoder_c", *(f"{kind}_{m}" for kind in ("encoder_s", "decoder") for m in "lva")):
        gradient = trainer.model.get_parameter(f"{name}.weight").grad
        assert gradient is None or not gradient.any()
    with pytest.raises(ConfigError, match="lambda_decoupling"):
        load_config("dmd", "synthetic", overrides={"feature_decoupling": False})


def test_without_cross_modal_attention_a_modality_reads_only_itself():
    trainer, batch, before = evaluated(cross_modal_attention=False)
    after = trainer.model(batch["text"], batch["audio"], 1 - batch["vision"])
    for m in STACK_ORDER:
        assert torch.equal(before.last_h[m], after.last_h[m]) == (m != "v")
    doubled = torch.cat([before.specific["l"], before.specific["l"]], dim=2)
    assert torch.allclose(before.last_h["l"], trainer.model.trans_l_mem(doubled)[:, -1], atol=1e-5)
    trainer.training_step(batch)
    attention = [
        p
        for name, p in trainer.model.named_parameters()
        if name.startswith("trans_") and "_with_" in name
    ]
    assert attention and all(parameter.grad is None for parameter in attention)


@pytest.mark.parametrize("use_bert", [True, False])
@pytest.mark.parametrize("modalities", ["lva", "lv", "a"])
def test_modality_that_is_not_listed_is_replaced_by_zeros(modalities, use_bert):
    """Features of masked modalities do not affect the prediction; those of the others do."""
    widths = {} if use_bert else {"feature_dims": [7, 5, 20]}
    args = load_config("dmd", "synthetic", overrides={"nlevels": 1, "use_bert": use_bert} | widths)
    args.seq_lens = [50, 50, 50]
    torch.manual_seed(1)
    model = DMD(args)

    def features(seed: int) -> dict:
        batch = make_batch(seed, LABELS)
        if not use_bert:
            batch["text"] = torch.randn(4, 50, 7, generator=torch.Generator().manual_seed(seed))
        return {field: batch[field].numpy() for field in FIELDS}

    def heads(arrays: dict, modalities: str) -> dict:
        split = Split(
            **arrays, labels=torch.tensor(LABELS).numpy(), ids=list("abcd"), raw_text=list("abcd")
        )
        return inspect(
            model,
            make_loader(UtteranceDataset(split), 3),
            torch.device("cpu"),
            modalities=modalities,
        ).heads

    arrays, others = features(0), features(1)
    before = heads(arrays, modalities)
    for field, m in FIELDS.items():
        after = heads(arrays | {field: others[field]}, modalities)
        assert (before["output_logit"] == after["output_logit"]).all() == (m not in modalities)
    with torch.no_grad():  # the masking leaves nothing behind in the model
        output = model(**{field: torch.from_numpy(arrays[field]) for field in FIELDS}).flat()
    for head, predicted in heads(arrays, "lva").items():
        assert predicted == pytest.approx(output[head][:, 0].numpy(), abs=1e-5)
