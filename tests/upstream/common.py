"""transformers' common model tests on the tiny models of tests/matrix.py; run by run.py."""

from __future__ import annotations

import copy
import unittest

import torch
from matrix import FAMILIES

from tests import test_modeling_common  # not our folder: that of the source distribution


class Tester:
    """What the mixin asks about a model."""

    batch_size, is_training = 2, True

    def __init__(self, parent: unittest.TestCase, name: str) -> None:
        self.parent, self.family = parent, FAMILIES[name]
        config = self.get_config()
        self.text_config = config.text_config.to_dict()
        self.vision_config = config.vision_config.to_dict()
        for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
            setattr(self, field, self.text_config[field])
        self.seq_length = self.prepare_config_and_inputs_for_common()[1]["input_ids"].shape[1]

    def get_config(self):
        return copy.deepcopy(self.family.make().config)

    def prepare_config_and_inputs_for_common(self):
        inputs = self.family.inputs(self.family.make(), [1, 1])
        inputs[self.family.pixels] = inputs[self.family.pixels].to(torch.float32)
        return self.get_config(), inputs


def _tests(name: str, model: str) -> type:
    import transformers

    def setUp(self) -> None:
        self.model_tester = Tester(self, name)

    body = {
        "all_model_classes": (getattr(transformers, model),),
        "_is_composite": True,
        # CLIP's last layer gets none: features are the last but one's.
        "test_all_params_have_gradient": False,
        "setUp": setUp,
    }
    return type(f"{model}Test", (test_modeling_common.ModelTesterMixin, unittest.TestCase), body)


for _name, _family in FAMILIES.items():
    _made = _tests(_name, type(_family.make()).__name__)
    globals()[_made.__name__] = _made
del _made  # which would be collected twice
