"""Tokenizers of the two language models, and the prompts that training and inference share."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, Qwen2TokenizerFast

from scripts.convert.to_hf import IMAGE
from scripts.tiny.questions import ANSWERS
from scripts.tiny.scenes import COLOURS, SHAPES

LLAVA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
QWEN_SYSTEM = "You are a helpful assistant."
POST_PROMPT = "\nAnswer the question using a single word or phrase."

QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# ChatML with the visual placeholders, one a picture; the processor repeats it for every token.
QWEN_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content -%}
{%- if part.type == "image" -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == "video" -%}<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


def corpus() -> list[str]:
    """What the tokenizers learn their pieces from: every word of the prompts and the answers."""
    things = [*SHAPES, *(f"{shape}s" for shape in SHAPES), "crosses"]
    lines = [
        *(f"Is there a {c} object in the image?" for c in COLOURS),
        *(f"Is there an {c} object in the image?" for c in COLOURS),
        *(f"Is there a {s} in the image?" for s in things),
        *(f"What color is the {s}?" for s in things),
        *(f"What shape is the {c} object?" for c in COLOURS),
        *(f"How many {s} are there?" for s in things),
        *(f"How many {c} objects are there?" for c in COLOURS),
        *(f"Is the {c} thing on the left or on the right?" for c in COLOURS),
        *(f"Is the {s} at the top or at the bottom?" for s in things),
        f"{LLAVA_SYSTEM} USER: ASSISTANT:",
        f"system {QWEN_SYSTEM} user assistant",
        POST_PROMPT.strip(),
        " ".join(ANSWERS),
    ]
    # Words as they stand at the beginning of a line, without a space before them.
    first = [f"({word}" for word in ("Is", "What", "How", "Answer", "You", *ANSWERS)]
    return [*lines, *first, "(system", "(user", "(assistant"] * 3


def llama_tokenizer(directory: Path) -> LlamaTokenizer:
    """Write tokenizer.model (SentencePiece BPE as Llama's) and return the tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type="bpe",
        vocab_size=1024,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = LlamaTokenizer.from_pretrained(
        directory,
        add_bos_token=True,
        pad_token="<unk>",
        padding_side="left",
        model_max_length=2048,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return tokenizer


def qwen_tokenizer(lines: Iterable[str], vocabulary: int = 1024) -> Qwen2TokenizerFast:
    """Byte-level BPE of at most so many pieces, learned from ``lines``; Qwen's special tokens."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True) for token in QWEN_SPECIAL],
        show_progress=False,
    )
    trained.train_from_iterator(lines, trainer)
    return Qwen2TokenizerFast(
        tokenizer_object=trained,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=list(QWEN_SPECIAL[1:]),
        model_max_length=32768,
    )


@dataclass(frozen=True, eq=False)
class Prompts:
    """Token ids of a prompt in its three parts: before the image's tokens, after them, question.

    The first two are the same for all questions about an image, so they can share them.

    Attributes:
        tokenizer: of the model.
        prefixes: (text before, text after) the image's tokens, one pair for each form in which
            evaluation programs write the prompt; training draws one a step.
        closing: what follows a question, up to where the answer begins.
        end: what follows the answer.
        start: what stands before the question, and is cut off its ids again.
        pieces: the file of the SentencePiece model, where the tokenizer is one.
    """

    tokenizer: PreTrainedTokenizerBase
    prefixes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    closing: str
    end: str
    start: str
    pieces: Path | None = None

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest question with its answer, without the post prompt."""
        things = max(SHAPES, key=len), max(COLOURS, key=len)
        text = f"Is the {things[1]} {things[0]} on the left or on the right?"
        return len(self.question(text, "Right", False))

    @cache  # noqa: B019 (there are some thousand texts)
    def question(self, text: str, answer: str, post_prompt: bool) -> tuple[int, ...]:
        """Ids from the question to its answer, which is the last of them (one token)."""
        text += POST_PROMPT if post_prompt else ""
        ids = self._ids(f"{self.start}{text}{self.closing}{answer}")
        return tuple(ids[len(self._ids(self.start)) :])

    @cached_property
    def end_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(self.end)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids


def llava_prompts(directory: Path) -> Prompts:
    """Prompts of LLaVA-1.5: with and without the system text, as the two packages write them."""
    tokenizer = llama_tokenizer(directory)
    ids = {
        text: tuple(tokenizer(text, add_special_tokens=False).input_ids)
        for text in (f"{LLAVA_SYSTEM} USER: ", "USER: ", f"{IMAGE}\n", "\n")
    }
    newline = ids[f"{IMAGE}\n"][1:]
    prefixes = tuple(
        ((tokenizer.bos_token_id, *ids[before]), after)
        for before in (f"{LLAVA_SYSTEM} USER: ", "USER: ")
        # The `llava` package tokenizes what follows the image apart, which adds a space to it.
        for after in (newline, ids["\n"])
    )
    return Prompts(
        tokenizer,
        prefixes,
        closing=" ASSISTANT: ",
        end=tokenizer.eos_token,
        start=f"{IMAGE}\n",
        pieces=directory / "tokenizer.model",
    )


def qwen_prompts() -> Prompts:
    """Prompts of Qwen2.5-VL: ChatML with and without the system text."""
    tokenizer = qwen_tokenizer(corpus())
    system = f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n"
    user = "<|im_start|>user\n<|vision_start|>"
    after = (tokenizer.convert_tokens_to_ids("<|vision_end|>"),)
    prefixes = tuple(
        (tuple(tokenizer(text, add_special_tokens=False).input_ids), after)
        for text in (system + user, user)
    )
    closing = "<|im_end|>\n<|im_start|>assistant\n"
    return Prompts(tokenizer, prefixes, closing, "<|im_end|>", start="<|vision_end|>")
