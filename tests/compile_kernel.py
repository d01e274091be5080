"""Compile the GPU kernel for GPUs that need not be here; one line of JSON a kernel on stdout."""

from __future__ import annotations

import json
import warnings

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hiprune import scores_triton

CASES = [("fp16", torch.float16, 64, False), ("bf16", torch.bfloat16, 80, True)]


def source(kernel, dtype: str, constants: dict) -> ASTSource:
    """The kernel for such arguments: pointers to values of these types, and constants."""
    pointers = {"query": dtype, "key": dtype, "lse": "fp32", "sums": "fp32"}
    pointers |= {"start": "i32", "stop": "i32"}
    types = {name: f"*{kind}" for name, kind in pointers.items()} | {"scale": "fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    names = kernel.arg_names
    strides = ("q_batch", "q_head", "q_row", "k_batch", "k_head", "k_row")
    aligned = [name for name in names if name in strides or types.get(name, "").startswith("*")]
    return ASTSource(
        fn=kernel,
        signature={name: types.get(name, "i32") for name in names},
        constexprs={(names.index(name),): v for name, v in constants.items() if name in names},
        # As a launch finds them: what is a multiple of 16 is loaded 16 bytes at once.
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )


def main() -> None:
    for dtype, torch_dtype, dim, segments in CASES:
        width, rest = scores_triton._split(dim)
        own, walked, warps, stages = scores_triton._tiles(torch_dtype, width + rest)
        constants = {"DIM": dim, "MAIN": width, "REST": rest, "SEGMENTS": segments}
        constants |= {"OWN": own, "WALKED": walked}
        constants |= {} if segments else {"start": None, "stop": None}
        for kernel in (scores_triton._row_logsumexp, scores_triton._column_sums):
            for capability in (80, 90):
                compiled = triton.compile(
                    source(kernel, dtype, constants),
                    target=GPUTarget("cuda", capability, 32),
                    options={"num_warps": warps, "num_stages": stages},
                )
                code = compiled.asm["ptx"]
                products = [name for name in ("wgmma", "mma.sync") if f"{name}." in code]
                result = {
                    "kernel": kernel.fn.__name__,
                    "capability": capability,
                    "dtype": dtype,
                    "shared": compiled.metadata.shared,
                    "products": " ".join(products),
                }
                print(json.dumps(result), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of what a next version of Triton will do
    main()
