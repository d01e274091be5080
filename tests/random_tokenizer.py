"""A SentencePiece tokenizer with Llama's special tokens, for the tiny LLaVA checkpoints."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece
from random_weights import CORPUS

ANSWERS = ("▁Yes", "▁No")
VOCABULARY = 512


def train_tokenizer(directory: Path) -> Path:
    """Write tokenizer.model; bytes stand in for text that the small vocabulary does not know."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        byte_fallback=True,
        user_defined_symbols=list(ANSWERS),
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path = directory / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path
