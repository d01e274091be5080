"""Pruned models on a GPU: the kernel scores, and nothing waits for the device or lies elsewhere.

Left out where there is no GPU. What is compared with comes from a CPU, or from float64.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

import torch_flash
from family import PACKAGE, forward, placed, where_real
from matrix import over_families, over_transformers

import hiprune
from hiprune import scores_triton

GPU = torch.device("cuda")
BATCH = [1, 2, 0]
over_halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


# How far results may lie apart, as a share of the largest: other kernels add up in another order,
# all layers through. A step of bfloat16 is 1/128 of a number.
FLOAT32, HALF, OTHER_ATTENTION = 1e-3, 3e-2, 6e-2


def near(found: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    size = expected.float().abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=share * size)


def moved(found: Any, dtype: torch.dtype) -> Any:
    """To the GPU, floating tensors in this precision."""
    if isinstance(found, dict):
        return {name: moved(value, dtype) for name, value in found.items()}
    if isinstance(found, list):
        return [moved(value, dtype) for value in found]
    if isinstance(found, torch.Tensor):
        return found.to(GPU, dtype if found.is_floating_point() else None)
    return found


def made(family: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, dict]:
    """A model and a batch of prompts, on the GPU."""
    model = family.model()
    arguments = family.inputs(model, BATCH)
    return model.to(GPU, dtype), moved(arguments, dtype)


def by_hand(family: Any) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Logits (T', V) and answer of each prompt, pruned to a third by hand on the CPU."""
    model = family.model()
    rows = family.alone(family.inputs(model, BATCH), BATCH)
    found = [family.by_hand(model, row, family.third, 4) for row in rows]
    return [logits.float() for logits, _ in found], [answer for _, answer in found]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Without TF32, which cuDNN's convolutions take unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def kernel(monkeypatch) -> list[torch.dtype]:
    """The precision of each call of the kernel, whose result is compared with float64."""
    calls, column_sums = [], scores_triton.column_sums

    def compared(query, key, scale, *, logsumexp=None, cu_seqlens=None):
        sums = column_sums(query, key, scale, logsumexp=logsumexp, cu_seqlens=cu_seqlens)
        calls.append(query.dtype)
        if torch.cuda.get_sync_debug_mode() == 0:
            logits = query.double() @ key.double().mT * scale  # (B, H, N_q, N)
            if cu_seqlens is not None:
                places = torch.arange(key.shape[2], device=key.device)
                segment = torch.bucketize(places, cu_seqlens.to(places), right=True)
                logits = logits.masked_fill(segment.unsqueeze(1) != segment, -torch.inf)
            expected = logits.softmax(dim=-1).sum(dim=2).float()  # (B, H, N)
            torch.testing.assert_close(sums, expected, rtol=5e-5, atol=1e-6)
        return sums

    monkeypatch.setattr(scores_triton, "column_sums", compared)
    return calls


@pytest.fixture
def flash_attention():
    """The count of calls of what is FlashAttention here."""
    with pytest.MonkeyPatch.context() as patch:
        yield torch_flash.put_in(patch)
    torch_flash.take_out()


@over_families
def test_as_pruned_by_hand_on_a_cpu(family, kernel):
    logits, answers = by_hand(family)
    model, arguments = made(family)
    with hiprune.prune(model, family.config(family.third)) as handle:
        found = forward(model, arguments).logits
        assert family.answer(model, arguments) == answers
        assert {s.indices.device.type for s in handle.selections} == {"cuda"}
    for line, row in zip(placed(found.cpu(), logits, [0] * 3), logits, strict=True):
        near(line, row, FLOAT32)
    assert set(kernel) == {torch.float32}


@over_halves
@over_families
def test_half_precision(family, dtype, kernel):
    whole_and_a_third(family, *made(family, dtype))
    assert set(kernel) == {dtype}


@over_families
def test_autocast(family, kernel):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        whole_and_a_third(family, *made(family))
    assert kernel


def whole_and_a_third(family: Any, model: Any, arguments: dict) -> None:
    """Everything kept is the unpatched model but for roundings of a half precision."""
    plain, whole = family.plain(model, arguments)
    expected = forward(plain, whole).logits
    with hiprune.prune(model, family.config(family.full)):
        found = forward(model, arguments).logits
    near(where_real(found, whole), where_real(expected, whole), HALF)
    with hiprune.prune(model, family.config(family.third)):
        assert forward(model, arguments).logits.isfinite().all()


@over_families
def test_between_tower_and_language_model_nothing_waits_for_the_device(family):
    model, arguments = made(family, torch.bfloat16)
    language = model.model if PACKAGE else model.model.language_model
    span = family.layers(model)[0], language.layers[0]

    def waits() -> list[str]:
        forward(model, arguments)  # compiles what it needs
        modes = [(span[0], "warn"), (span[1], "default")]
        hooks = [
            module.register_forward_pre_hook(
                lambda *_, mode=mode: torch.cuda.set_sync_debug_mode(mode)
            )
            for module, mode in modes
        ]
        try:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                forward(model, arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            for hook in hooks:
                hook.remove()
        return [
            f"{each.filename}:{each.lineno}" for each in found if "synchroniz" in str(each.message)
        ]

    unpatched = waits()
    with hiprune.prune(model, family.config(family.third)):
        pruned = waits()
    assert len(pruned) <= len(unpatched), pruned
    assert not [place for place in pruned if "/hiprune/" in place or "/models/clip" in place]


def test_a_wait_is_seen():
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz"):
            torch.ones(3, device=GPU).sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@over_transformers
def test_weights_that_lie_on_the_host(family):
    accelerate = pytest.importorskip("accelerate")
    _, answers = by_hand(family)
    model, arguments = family.model().float(), None
    arguments = moved(family.inputs(model, BATCH), torch.float32)
    model = accelerate.cpu_offload(model, execution_device=GPU)
    with hiprune.prune(model, family.config(family.third)):
        assert family.answer(model, arguments) == answers


@over_families
def test_threads_with_streams_of_their_own(family):
    model, arguments = made(family)
    found: dict[int, torch.Tensor] = {}

    def run(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(3):
                found[number] = forward(model, arguments).logits
            torch.cuda.current_stream().synchronize()

    with hiprune.prune(model, family.config(family.third)):
        expected = forward(model, arguments).logits
        torch.cuda.synchronize()
        threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 3
    for logits in found.values():
        near(logits, expected, FLOAT32)


@over_transformers
def test_a_static_cache_whose_steps_are_compiled(family):
    """On a GPU transformers compiles the steps of such a cache by itself."""
    _, answers = by_hand(family)
    model, arguments = made(family)
    with hiprune.prune(model, family.config(family.third)):
        assert family.answer(model, arguments, cache_implementation="static") == answers


@over_transformers
def test_flash_attention_2(family, flash_attention, kernel):
    model, arguments = made(family, torch.float16)
    config = family.config(family.third)
    with hiprune.prune(model, config) as handle:
        expected = forward(model, arguments).logits
        chosen = [s.indices.tolist() for s in handle.selections]
    model.set_attn_implementation("flash_attention_2")
    with hiprune.prune(model, config) as handle:
        found = forward(model, arguments).logits
        assert [s.indices.tolist() for s in handle.selections] == chosen
        answers = family.answer(model, arguments)
    assert flash_attention["dense"] + flash_attention["varlen"] > 0
    real = [len(row) for row in by_hand(family)[0]]
    for line, other, count in zip(found, expected, real, strict=True):  # padding is nobody's
        near(line[-count:], other[-count:], OTHER_ATTENTION)  # 0.035 of qwen2_vl's was seen
    assert len(answers) == len(BATCH)
