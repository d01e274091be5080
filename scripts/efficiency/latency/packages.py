"""The package that a model is of, and the name of its checkpoint there."""

from __future__ import annotations

from hiprune.models.transformers_version import require_transformers

from hiprune import HiPruneError
from scripts.efficiency.architectures import Architecture
from scripts.efficiency.configs import has_llava_package
from scripts.efficiency.latency.errors import BenchError

# The `llava` package reads checkpoints of its own format.
PACKAGE_CHECKPOINTS = {
    "llava-1.5-7b": "liuhaotian/llava-v1.5-7b",
    "llava-1.5-13b": "liuhaotian/llava-v1.5-13b",
    "llava-next-7b": "liuhaotian/llava-v1.6-vicuna-7b",
}


def choose_package(asked: str | None, family: str) -> str:
    """ "transformers" or "llava": the one asked for, or the one that this environment has.

    Raises:
        BenchError: it is not here, or does not know the family.
    """
    package = asked or ("llava" if has_llava_package() else "transformers")
    if package == "llava" and not has_llava_package():
        raise BenchError(
            "package='llava': it is not importable here; expected an environment that has it "
            "(setup_llava.sh makes one), or --package transformers"
        )
    if package == "llava" and family == "qwen2_5_vl":
        raise BenchError(
            "model: Qwen2.5-VL with the `llava` package; expected LLaVA models here. "
            "Qwen2.5-VL needs the environment of setup_qwen.sh"
        )
    if package == "transformers":
        try:
            require_transformers()
        except HiPruneError as error:
            raise BenchError(f"package='transformers': {error}") from error
    return package


def default_checkpoint(architecture: Architecture, package: str) -> str | None:
    """Its id on the hub, in the package's format; None for a tiny model."""
    if package == "llava":
        return PACKAGE_CHECKPOINTS.get(architecture.name)
    return architecture.checkpoint or None
