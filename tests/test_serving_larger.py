"""The model of random weights behind the serving benchmark, with few layers."""

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="needs transformers 5.17 or newer")


def test_what_is_saved_answers_about_a_picture(tmp_path, monkeypatch):
    import transformers
    from PIL import Image

    from scripts.serving import larger

    layers = {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    monkeypatch.setattr(larger, "TEXT", larger.TEXT | layers | {"intermediate_size": 128})
    larger.make(tmp_path)
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert model.config.text_config.hidden_size == 896
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    content = [
        {"type": "image", "image": Image.new("RGB", (336, 336))},
        {"type": "text", "text": "?"},
    ]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(**prompt).logits
    assert logits.isfinite().all() and logits.std() > 0
