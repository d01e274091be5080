"""What forward gives out, and what others call under the patch: as of the unpatched model."""

from __future__ import annotations

import pytest
import torch
from family import close, forward
from matrix import over_transformers

import hiprune

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = [1, 2]


@over_transformers
def test_features_and_the_inner_model_under_the_patch(family):
    """What others call outside of forward and generate is whole, before and after these."""
    model = family.model()
    arguments = family.inputs(model, [3])
    names = [
        family.pixels,
        *(n for n in ("image_sizes", "image_grid_thw", "batch_num_images") if n in arguments),
    ]
    images = {name: arguments[name] for name in names}
    more = {"output_attentions": True, "output_hidden_states": True}
    model.set_attn_implementation("eager")  # whose maps can be looked at

    def look():
        with torch.no_grad():
            inner = model.model(**arguments).last_hidden_state
            features = [
                owner.get_image_features(**images, **more) for owner in (model, model.model)
            ]
        return inner, [flat(found) for found in features]

    expected = look()
    assert len(expected[1][0]) > len(family.layers(model)), "attentions are among them"
    with hiprune.prune(model, family.config(family.third)) as pruned:
        close(look(), expected, exact=True)
        assert pruned.selections == []
        forward(model, arguments)
        close(look(), expected, exact=True)
        assert len(pruned.selections) == 3


def flat(output):
    """All tensors of an output."""
    if isinstance(output, torch.Tensor):
        return [output]
    if output is None or not isinstance(output, (list, tuple, dict)):
        return []
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in flat(value)]


@over_transformers
@pytest.mark.parametrize("return_dict", [True, False])
def test_outputs_of_forward(family, return_dict):
    """Everything that the unpatched model gives; of a pruned prompt, as of its embeddings."""
    model = family.model()
    model.set_attn_implementation("eager")  # whose maps can be looked at; NaN where padded
    arguments = family.inputs(model, [2])
    labels = arguments["input_ids"].clone()
    labels[labels == family.placeholder] = -100
    plain, whole = family.plain(model, arguments | {"labels": labels})
    more = {"output_attentions": True, "output_hidden_states": True, "return_dict": return_dict}
    expected = forward(plain, whole, **more)
    arguments["labels"] = labels
    with hiprune.prune(model, family.config(family.full)):
        found = forward(model, arguments, **more)
    assert type(found) is type(expected)
    if return_dict:
        assert list(found) == list(expected)
    assert len(found) == len(expected)
    for one, other in zip(_members(found), _members(expected), strict=True):
        close(flat(one), flat(other), exact=True)
    with hiprune.prune(model, family.config(family.third)) as pruned:
        found = forward(model, arguments, **more)
        kept = sum(selection.indices.numel() for selection in pruned.selections)
    assert len(found) == len(expected)
    if return_dict and hasattr(found, "image_hidden_states"):
        features = found.image_hidden_states
        features = features if isinstance(features, torch.Tensor) else torch.cat(list(features))
        assert features.flatten(0, -2).shape[0] == kept


def _members(output):
    return output.values() if isinstance(output, dict) else output
