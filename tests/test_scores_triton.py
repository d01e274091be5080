"""The GPU kernel against the float64 oracle: on a GPU, or in Triton's interpreter on the CPU."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from score_cases import bounds, heads, packed_reference

from hiprune import received_attention, scores, triton_support
from hiprune.scores import received_attention_packed, received_attention_reference

triton = pytest.importorskip("triton", reason="Triton is not installed")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"

# The interpreter computes with numpy, which warns of the infinities that mark what is masked.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            not ON_GPU, reason="no GPU; Triton's interpreter multiplies bfloat16 as if integers"
        ),
    ),
]
SHAPES = [(1, 1, 1, 64), (2, 3, 37, 64), (1, 2, 130, 80), (1, 2, 64, 64), (1, 1, 70, 72),
          (1, 1, 200, 8), (1, 1, 33, 160), (1, 1, 40, 256)]  # fmt: skip
LARGE = [(1, 16, 577, 64), (5, 16, 577, 64), (1, 16, 4096, 80), (1, 2, 32768, 80)]


@pytest.fixture(autouse=True, scope="module")
def _patched_once_a_launch():
    """Triton's interpreter patches its language at each call of a function within a launch, too."""
    from triton.runtime import interpreter

    patch_language, launch, patched = (
        interpreter._patch_lang,
        interpreter.GridExecutor.__call__,
        set(),
    )

    def patch(function):
        module = function.__globals__["__name__"]
        if module in patched:
            return interpreter._LangPatchScope()
        patched.add(module)
        return patch_language(function)

    def launched(*args, **kwargs):
        patched.clear()
        return launch(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang", patch)
        patches.setattr(interpreter.GridExecutor, "__call__", launched)
        yield


def column_sums(*args, **kwargs):
    from hiprune.scores_triton import column_sums

    return column_sums(*args, **kwargs)


def check(shape, dtype, oracle=received_attention_reference):
    query, key = (heads(*shape, dtype, seed=seed).to(DEVICE) for seed in (1, 2))
    found = column_sums(query, key, shape[-1] ** -0.5).mean(dim=1) / shape[2]
    # Scores near 0 are sums of float32 exponentials of what the products were rounded to.
    torch.testing.assert_close(found, oracle(query, key).float(), rtol=5e-5, atol=1e-8)
    again = column_sums(query, key, shape[-1] ** -0.5).mean(dim=1) / shape[2]
    assert torch.equal(found, again)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_float64_oracle(shape, dtype):
    check(shape, dtype)


@pytest.mark.skipif(not ON_GPU, reason="no GPU; too large for Triton's interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", LARGE)
def test_released_models_shapes(shape, dtype):
    large = shape[2] > 8192  # the oracle's map would be of 16 GB
    check(shape, dtype, blockwise if large else received_attention_reference)


def blockwise(query, key):
    """Torch's path in float64."""
    score = 0
    for rows in query.split(1024, dim=2):
        score = score + received_attention_reference(rows, key) * rows.shape[2]
    return score / query.shape[2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[150], [16, 0, 32, 1, 82, 19], [64, 64, 22], [1] * 70])
def test_packed_segments(lengths, dtype):
    query, key = (heads(1, 2, sum(lengths), 80, dtype, seed=s).to(DEVICE)[0] for s in (1, 2))
    found = column_sums(
        query[None], key[None], 80**-0.5, cu_seqlens=bounds(lengths).to(DEVICE)
    )  # (1, H, N)
    expected = packed_reference(query, key, lengths)
    torch.testing.assert_close(found[0].mean(dim=0), expected, rtol=5e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.3, 0.0, -0.3])
def test_scales_strides_and_other_numbers_of_queries(scale):
    query = heads(2, 45, 3, 32, seed=1).to(DEVICE).transpose(1, 2)  # as models hold them
    key = heads(2, 32, 80, 3, seed=2).to(DEVICE).permute(0, 3, 2, 1)  # (B, H, N, D), D not last
    expected = received_attention_reference(query, key, scale).float()
    found = column_sums(query, key, scale).mean(dim=1) / 45
    torch.testing.assert_close(found, expected, rtol=5e-5, atol=1e-8)
    known = (query @ key.transpose(-1, -2) * scale).logsumexp(dim=-1)
    found = column_sums(query, key, scale, logsumexp=known).mean(dim=1) / 45
    torch.testing.assert_close(found, expected, rtol=5e-5, atol=1e-8)


def test_a_nan_stays_one():
    query, key = (heads(1, 1, 20, 16, seed=seed).to(DEVICE) for seed in (1, 2))
    query[0, 0, 3, 0] = torch.nan
    assert column_sums(query, key, 0.25).isnan().all()


def test_compiles_for_gpus_that_are_not_here():
    """Triton brings its compiler along; only what the kernel does on them needs the GPUs."""
    pytest.importorskip("triton.backends.nvidia", reason="no compiler for NVIDIA's GPUs")
    script = Path(__file__).with_name("compile_kernel.py")
    environ = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 8
    for kernel in found:
        assert kernel["shared"] <= 99 * 1024, kernel  # a block's on the smallest of these GPUs
        # No 16-bit product on plain cores.
        assert kernel["products"] == ("wgmma" if kernel["capability"] == 90 else "mma.sync"), kernel


@pytest.fixture
def untried(monkeypatch):
    """As in a process that has not computed any score."""
    monkeypatch.setattr(triton_support, "_wrong", set())
    triton_support._tried.cache_clear()
    yield
    triton_support._tried.cache_clear()


def runs_here(dtype, dim=64):
    return triton_support._runs_on(torch.device(DEVICE), dtype, dim)


@pytest.mark.parametrize("dim", [64, 80])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_use_finds_the_kernel_right(untried, dtype, dim, monkeypatch, caplog):
    found, compare = [], triton_support._difference
    monkeypatch.setattr(
        triton_support, "_difference", lambda *of: found.append(compare(*of)) or found[-1]
    )
    state = torch.get_rng_state()
    assert runs_here(dtype, dim) and runs_here(dtype, dim)
    (difference,) = found  # the first use alone
    assert difference < 5e-5
    assert torch.equal(torch.get_rng_state(), state)  # nobody's draws change
    assert not caplog.records


def one_neighbour_more(first, last, places):
    """In place of `_inside`: each segment sees the token after it."""
    return (places[None, :] >= first[:, None]) & (places[None, :] <= last[:, None])


SPOILT = {
    "segments run over": ("_inside", one_neighbour_more),
    "columns are left out": ("_split", lambda dim: (64, 0)),
    "nothing but NaN": ("LOG2_E", float("nan")),
}


@pytest.mark.skipif(ON_GPU, reason="spoils the kernel in the interpreter")
@pytest.mark.parametrize("how", SPOILT)
def test_a_kernel_that_computes_something_else_is_told_once_and_left(
    untried, how, monkeypatch, caplog
):
    from hiprune import scores_triton

    name, spoilt = SPOILT[how]
    monkeypatch.setattr(scores_triton, name, spoilt)
    with caplog.at_level(logging.WARNING):
        for dtype in (torch.float32, torch.float16, torch.float32):
            assert not runs_here(dtype, 80)  # what is wrong in one type is relied on in none
    (record,) = caplog.records
    assert "computed by torch on cpu" in record.getMessage()
    assert "kernel's differ by" in record.getMessage()


def test_more_heads_than_a_grids_second_dimension_holds(monkeypatch):
    """65,535 on CUDA; the first holds 2**31 - 1."""
    from hiprune import scores_triton

    grids = []

    class Launches:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **kwargs: None

    for kernel in ("_row_logsumexp", "_column_sums"):
        monkeypatch.setattr(scores_triton, kernel, Launches())
    query = torch.zeros(5000, 16, 70, 16, device=DEVICE)  # 80,000 heads of two tiles
    scores_triton.column_sums(query[:, :, :40], query, 0.25)
    assert grids == [(80_000,), (160_000,)]


def test_every_head_and_tile_has_its_program():
    """Sizes that differ in everything: a program that took another's place would show."""
    query, key = (heads(3, 2, tokens, 16, seed=tokens).to(DEVICE) for tokens in (150, 200))
    found = column_sums(query, key, 0.25).mean(dim=1) / 150
    expected = received_attention_reference(query, key, 0.25).float()
    torch.testing.assert_close(found, expected, rtol=5e-5, atol=1e-8)


def test_without_triton_torch_computes_and_the_log_says_so_once(untried, monkeypatch, caplog):
    def missing():
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(triton_support, "require_triton", missing)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not triton_support._runs_on(torch.device("cuda", 0), torch.float16, 64)
    (record,) = caplog.records
    assert "computed by torch on cuda:0" in record.getMessage()
    assert "No module named 'triton'" in record.getMessage()


@pytest.mark.parametrize("version", ["2.3.1", "1.0"])
def test_an_old_triton_is_named(monkeypatch, version):
    monkeypatch.setattr(triton, "__version__", version)
    with pytest.raises(ImportError, match=f"triton {version}: expected 3.0 or newer"):
        triton_support.require_triton()


def test_where_there_is_a_kernel():
    query = heads(1, 1, 4, 16)
    assert not triton_support.has_kernel(query)  # a CPU
    if ON_GPU:
        assert triton_support.has_kernel(query.cuda())
        assert not triton_support.has_kernel(query.cuda().double())


@pytest.mark.skipif(not ON_GPU, reason="no GPU")
def test_the_public_functions_take_the_kernel(monkeypatch):
    monkeypatch.setattr(scores, "_column_sums", None)
    query, key = (heads(1, 2, 50, 64, seed=seed).cuda() for seed in (1, 2))
    expected = received_attention_reference(query, key).float()
    torch.testing.assert_close(received_attention(query, key), expected, rtol=5e-5, atol=1e-8)
    packed = received_attention_packed(query[0], key[0], bounds([20, 30]).cuda())
    torch.testing.assert_close(packed, packed_reference(query[0], key[0], [20, 30]))
