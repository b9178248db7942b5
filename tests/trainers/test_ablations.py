"""What the settings that ablations are made of switch off, and the masking of modalities."""

import pytest
import torch

from config import load_config
from dataset.features import Split
from dataset.loaders import UtteranceDataset
from models.dmd import DMD, STACK_ORDER
from tests.reference import make_loader
from tests.trainers.test_switches import make_batch, make_trainer
from trainers.heads import HEADS, inspect
from utils.errors import ConfigError

LABELS = [1.0, 1.0, -2.0, 0.4]
GROUPS = {  # a weight of the objective: the terms it weighs, and their factor in the total besides it
    "recon_weight": ([f"recon/{m}" for m in "lva"], 0.1),
    "cycle_weight": ([f"cycle/{m}" for m in "lva"], 0.1),
    "margin_weight": (["margin"], 0.1 * 0.1),
    "ort_weight": ([f"ort/{m}" for m in "lva"], 0.1 * 0.1),
    "homo_weight": (["homo/logit", "homo/reg"], 0.05),
    "hetero_weight": (["hetero/logit", "hetero/repr", "hetero/reg"], 0.05),
}


def terms_of(**overrides) -> dict[str, float]:
    trainer = make_trainer(**overrides)
    step = trainer.training_step(make_batch(0, LABELS))
    return dict(zip(step.names, step.losses.tolist(), strict=True))


@pytest.mark.parametrize("key", GROUPS)
def test_a_weight_scales_its_terms_in_the_total(key):
    names, factor = GROUPS[key]
    as_released, without, tripled = terms_of(), terms_of(**{key: 0.0}), terms_of(**{key: 3.0})
    part = factor * sum(as_released[name] for name in names)
    assert part > 1e-5
    assert without["total"] == pytest.approx(as_released["total"] - part, abs=2e-6)
    assert tripled["total"] == pytest.approx(as_released["total"] + 2 * part, abs=5e-6)
    assert {**without, "total": 0} == {**as_released, "total": 0}  # the terms themselves are reported as they are


def test_the_total_is_the_sum_of_what_is_weighed():
    terms = terms_of()
    expected = sum(value for name, value in terms.items() if name.startswith("task/"))
    expected += sum(factor * terms[name] for names, factor in GROUPS.values() for name in names)
    assert terms["total"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("key", "graph"), [("homo_weight", "homo"), ("hetero_weight", "hetero")])
def test_a_graph_that_weighs_nothing_learns_nothing(key, graph):
    trainer = make_trainer(**{key: 0})
    trainer.training_step(make_batch(0, LABELS))
    for name in ("homo", "hetero"):
        gradients = [p.grad is not None and p.grad.any() for p in getattr(trainer.objective, name).parameters()]
        assert any(gradients) == (name != graph)


def test_without_decoupling_both_parts_are_the_projected_features():
    trainer = make_trainer(feature_decoupling=False, lambda_decoupling=0)
    trainer.model.eval()
    batch = make_batch(0, LABELS)
    output = trainer.model(batch["text"], batch["audio"], batch["vision"])
    for m in STACK_ORDER:
        assert torch.equal(output.specific[m], output.origin[m]) and torch.equal(output.common[m], output.origin[m])
    trainer.training_step(batch)
    unused = [f"{name}.weight" for name in ("encoder_c", *(f"{kind}_{m}" for kind in ("encoder_s", "decoder")
                                                           for m in "lva"))]  # fmt: skip
    gradients = [trainer.model.get_parameter(name).grad for name in unused]
    assert not any(gradient is not None and gradient.any() for gradient in gradients)


def test_without_decoupling_nothing_of_it_can_be_trained():
    with pytest.raises(ConfigError, match="lambda_decoupling is 0.1, but without feature_decoupling"):
        load_config("dmd", "synthetic", overrides={"feature_decoupling": False})


def test_without_cross_modal_attention_a_modality_reads_only_itself():
    trainer = make_trainer(cross_modal_attention=False)
    trainer.model.eval()
    batch = make_batch(0, LABELS)
    before = trainer.model(batch["text"], batch["audio"], batch["vision"])
    after = trainer.model(batch["text"], batch["audio"], 1 - batch["vision"])
    for m in STACK_ORDER:
        assert torch.equal(before.last_h[m], after.last_h[m]) == (m != "v")
    doubled = torch.cat([before.specific["l"], before.specific["l"]], dim=2)
    expected = trainer.model.trans_l_mem(doubled)[:, -1]
    assert torch.allclose(before.last_h["l"], expected, atol=1e-5)
    trainer.training_step(batch)
    for name, parameter in trainer.model.named_parameters():
        if name.startswith("trans_") and "_with_" in name:
            assert parameter.grad is None, name


@pytest.mark.parametrize("use_bert", [True, False])
@pytest.mark.parametrize("kept", ["lva", "lv", "a", "v"])
def test_a_modality_that_is_not_kept_says_nothing(kept, use_bert):
    """Other features of what is masked change nothing; other features of what is kept change the prediction."""
    model = _model(use_bert)
    arrays, others = (_arrays(seed, use_bert) for seed in (0, 1))
    before = _inspected(model, arrays, kept)
    for name, m in (("text", "l"), ("audio", "a"), ("vision", "v")):
        after = _inspected(model, arrays | {name: others[name]}, kept)
        assert (before["output_logit"] == after["output_logit"]).all() == (m not in kept)
    everything = _inspected(model, arrays, "lva")  # and the masking leaves nothing behind in the model
    batch = {name: torch.from_numpy(arrays[name]) for name in ("text", "audio", "vision")}
    with torch.no_grad():
        output = model(**batch).flat()
    for head in HEADS:
        assert everything[head] == pytest.approx(output[head][:, 0].numpy(), abs=1e-5)


def _model(use_bert: bool) -> DMD:
    widths = {} if use_bert else {"feature_dims": [7, 5, 20]}
    args = load_config("dmd", "synthetic", overrides={"nlevels": 1, "use_bert": use_bert} | widths)
    args.seq_lens = [50, 50, 50]
    torch.manual_seed(1)
    return DMD(args)


def _arrays(seed: int, use_bert: bool) -> dict:
    batch = make_batch(seed, LABELS)
    if not use_bert:
        batch["text"] = torch.randn(4, 50, 7, generator=torch.Generator().manual_seed(seed))
    return {name: batch[name].numpy() for name in ("text", "audio", "vision", "labels")}


def _inspected(model, arrays: dict, kept: str) -> dict:
    names = ["a", "b", "c", "d"]
    split = Split(**arrays | {"labels": arrays["labels"][:, 0]}, ids=names, raw_text=names)
    return inspect(model, make_loader(UtteranceDataset(split), 3), torch.device("cpu"), kept=kept).heads
