"""Forward pass, edges, losses and gradients against the released code (tolerances: 1e-5, gradient
norms 1e-4).
"""

import json

import pytest
import torch

from tests.reference import CASES, FOLDER, Reference


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
@pytest.mark.parametrize("case", CASES)
def test_forward_edges_losses_and_gradients_match_reference(case, fast, tmp_path):
    reference = Reference(case, tmp_path, fast=fast)
    (model, objective), batch = reference.build(), reference.batch()
    output = model(batch["text"], batch["audio"], batch["vision"])
    terms = objective(output, batch["labels"])
    terms["total"].backward()
    reference.compare("fwd", output.flat(), 1e-5)
    reference.compare("edges", terms.edges, 1e-5)
    reference.compare("loss", terms, 1e-5)
    named = [*model.named_parameters(), *objective.named_parameters()]
    reference.compare("gradnorm", {name: p.grad for name, p in named}, 1e-4, least=-1)


@pytest.mark.parametrize("case", ["mosi_aligned", "mosei_aligned"])
def test_state_dict_has_the_published_names_order_and_shapes(case, tmp_path):
    reference = Reference(case, tmp_path)
    model, objective = reference.build()
    published = json.loads((FOLDER / f"state_dict_{case}.json").read_text())
    # The file lists the parameters of the graphs after those of the model.
    ours = {
        name: list(value.shape)
        for part in (model, objective)
        for name, value in part.state_dict().items()
    }
    assert list(ours.items()) == list(published.items())
    zeros = {
        name: torch.zeros(shape) for name, shape in published.items() if name in model.state_dict()
    }
    model.load_state_dict(zeros, strict=True)
