"""Distillation terms and the total under every switch, by loops over the utterances and the pairs
of modalities.
"""

import itertools
import math

import pytest
import torch

from config import load_config
from models.dmd import STACK_ORDER, DMDOutput
from trainers.losses import Objective

B, D, STEPS = 3, 2, 4
WEIGHTS = (
    "recon_weight",
    "cycle_weight",
    "margin_weight",
    "ort_weight",
    "homo_weight",
    "hetero_weight",
)
KINDS = ("off", "l1", "min_cosine")
LABELS = torch.tensor([[1.0], [1.0], [-2.0]])
PRIORS = {"homo": [0, 0, 1, 0, 1, 0], "hetero": [0, 0, 1, 0, 1, 1]}


def make_objective(**overrides) -> Objective:
    args = load_config("dmd", "mosi", overrides={"dst_feature_dim_nheads": [D, 1]} | overrides)
    torch.manual_seed(4)
    return Objective(args)


def make_output() -> DMDOutput:
    generator = torch.Generator().manual_seed(9)

    def each(*shape):
        return {m: torch.randn(shape, generator=generator, requires_grad=True) for m in STACK_ORDER}

    logits = (torch.randn(B, 1, generator=generator) for _ in range(2))
    return DMDOutput(
        *logits,
        origin=each(B, STEPS, D),
        specific=each(B, STEPS, D),
        common=each(B, STEPS, D),
        recon=each(B, STEPS, D),
        specific_recon=each(B, STEPS, D),
        specific_proj=each(B, D),
        common_sim=each(B, D),
        logits_homo=each(B, 1),
        repr_homo=each(B, D),
        last_h=each(B, 2 * D),
        logits_hetero=each(B, 1),
        repr_hetero=each(B, 2 * D),
    )


def expected_terms(
    graph: str, edges, logits, reprs, kind: str, prior: list[float]
) -> dict[str, float]:
    """Logit, representation and regulariser of one graph; `prior` of zeros for none."""
    terms = dict.fromkeys(("logit", "reg", "repr"), 0.0)
    # student, teacher
    pairs = [("l", "v"), ("l", "a"), ("v", "l"), ("v", "a"), ("a", "l"), ("a", "v")]
    for p, (student, teacher) in enumerate(pairs):
        weights = [edges[p][b].item() + prior[p] for b in range(B)]
        if any(prior):
            terms["reg"] += 10 * (sum(edges[p][b].item() for b in range(B)) / B - prior[p]) ** 2
        similarities = []
        for b in range(B):
            terms["logit"] += (
                weights[b] * abs(logits[student][b].item() - logits[teacher][b].item()) / B
            )
            x, y = reprs[student][b].tolist(), reprs[teacher][b].tolist()
            if kind != "min_cosine":
                terms["repr"] += (
                    10 * weights[b] * sum(abs(v - w) for v, w in zip(x, y, strict=True)) / B
                )
            dot = sum(v * w for v, w in zip(x, y, strict=True))
            similarities.append(
                max(0, dot / math.sqrt(sum(v * v for v in x) * sum(w * w for w in y)))
            )
        if kind == "min_cosine":
            terms["repr"] += 10 * (sum(weights) / B) * (sum(similarities) / B)
    return terms


@pytest.mark.parametrize(("kind", "gd_prior"), list(itertools.product(KINDS, ("release", "none"))))
def test_distillation_terms_match_hand_computed_values(kind, gd_prior):
    objective, output = (
        make_objective(homo_repr=kind, hetero_repr=kind, gd_prior=gd_prior),
        make_output(),
    )
    terms = objective(output, LABELS)
    for graph in ("homo", "hetero"):
        powers = [math.exp(4 * x) for x in PRIORS[graph]]
        prior = [power / sum(powers) for power in powers] if gd_prior == "release" else [0.0] * 6
        logits, reprs = getattr(output, f"logits_{graph}"), getattr(output, f"repr_{graph}")
        expected = expected_terms(graph, terms.edges[graph], logits, reprs, kind, prior)
        assert {name: terms[f"{graph}/{name}"].item() for name in expected} == pytest.approx(
            expected, rel=1e-5
        )


@pytest.mark.parametrize(
    ("overrides", "trained"),
    [
        ({}, ["homo/logit", "homo/reg", "hetero/logit", "hetero/reg", "hetero/repr"]),
        (
            {"homo_repr": "l1"},
            ["homo/logit", "homo/reg", "homo/repr", "hetero/logit", "hetero/reg", "hetero/repr"],
        ),
        ({"hetero_repr": "off"}, ["homo/logit", "homo/reg", "hetero/logit", "hetero/reg"]),
        ({"objective": "paper"}, ["homo/logit", "hetero/logit"]),
        (
            {"objective": "paper", "hetero_repr": "l1"},
            ["homo/logit", "hetero/logit", "hetero/repr"],
        ),
        (dict(zip(WEIGHTS, (3, 0, 4, 2, 0.5, 0), strict=True)), ["homo/logit", "homo/reg"]),
    ],
    ids=[
        "release",
        "homo_repr l1",
        "hetero_repr off",
        "paper",
        "paper with hetero_repr",
        "weights",
    ],
)
def test_total_loss_sums_the_trained_terms(overrides, trained):
    terms = {
        name: value.item()
        for name, value in make_objective(**overrides)(make_output(), LABELS).items()
    }
    recon, cycle, margin, ort, homo, hetero = (overrides.get(key, 1) for key in WEIGHTS)
    expected = sum(terms[f"task/{name}"] for name in ("all", "c"))
    for m in "lva":
        expected += terms[f"task/{m}_homo"] + terms[f"task/{m}_hetero"]
        expected += 0.1 * (
            recon * terms[f"recon/{m}"]
            + cycle * terms[f"cycle/{m}"]
            + 0.1 * ort * terms[f"ort/{m}"]
        )
    expected += 0.1 * 0.1 * margin * terms["margin"]
    expected += 0.05 * sum((homo if "homo" in name else hetero) * terms[name] for name in trained)
    assert terms["total"] == pytest.approx(expected, rel=1e-6)
