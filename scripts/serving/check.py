"""Two questions to the small Qwen2.5-VL through vLLM, pruned: does the environment work?

python -m scripts.serving.check          run by setup_vllm.sh
"""

from __future__ import annotations

import os
import sys

from scripts.benchmarks import QWEN_TINY, SMALL_ENGINE


def main() -> int:
    for name in [name for name in os.environ if name.startswith("HIPRUNE_")]:
        del os.environ[name]
    os.environ.update(SMALL_ENGINE)
    from PIL import Image
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(QWEN_TINY.checkpoint),
        dtype="float32",
        max_model_len=1024,
        enforce_eager=True,
        hf_overrides={"hiprune": {"retention": 0.334}},
    )
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    prompt = "<|im_start|>user\n{}{}<|im_end|>\n<|im_start|>assistant\n"
    asked = [
        {
            "prompt": prompt.format(image, f"Is there a {colour} circle in the image?"),
            "multi_modal_data": {"image": Image.new("RGB", (336, 336), colour)},
        }
        for colour in ("red", "blue")
    ]
    outputs = llm.generate(asked, SamplingParams(temperature=0, max_tokens=4))
    placeholder = llm.get_tokenizer().convert_tokens_to_ids("<|image_pad|>")
    for output in outputs:
        kept = output.prompt_token_ids.count(placeholder)
        print(f"N' = {kept}: {output.outputs[0].text!r}")
        if kept != 48 or not output.outputs[0].text:  # a third of 144
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
