"""Let the llava.eval modules, which move their tensors to "cuda", run on a machine without a GPU.

With this folder on PYTHONPATH, processes that run such a module send these tensors to the CPU.
"""

import sys

if any(argument.startswith("llava.eval.model_") for argument in sys.orig_argv):
    import torch
    from torch.overrides import TorchFunctionMode

    def on_cpu(value):
        if isinstance(value, (str, torch.device)) and str(value).partition(":")[0] == "cuda":
            return torch.device("cpu")
        return value

    class CudaOnCpu(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.cuda:
                return args[0]
            kwargs = {name: on_cpu(value) for name, value in (kwargs or {}).items()}
            return func(*map(on_cpu, args), **kwargs)

    CudaOnCpu().__enter__()

if sys.orig_argv[-1:] == ["--cuda"]:  # whether there is a GPU
    import torch

    torch.cuda.is_available = lambda: True
