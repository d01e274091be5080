"""vLLM's Qwen3-VL and its mixture-of-experts form; see :mod:`hiprune.models.vllm_qwen`."""

from hiprune.models.vllm_qwen import Info, Processor, Pruned, Tower
from hiprune.models.vllm_tower import stands_for
from vllm.model_executor.models import qwen3_vl as vllm_qwen
from vllm.model_executor.models import qwen3_vl_moe as vllm_moe


class _Info(Info, vllm_qwen.Qwen3VLProcessingInfo):
    family = "qwen3_vl"


class _Processor(Processor, vllm_qwen.Qwen3VLMultiModalProcessor):
    pass


class _Tower(Tower, vllm_qwen.Qwen3_VisionTransformer):
    pass


@stands_for(vllm_qwen.Qwen3VLForConditionalGeneration, _Info, _Processor)
class HiPruneQwen3VL(Pruned, vllm_qwen.Qwen3VLForConditionalGeneration):
    tower_class = _Tower


class _MoeInfo(Info, vllm_moe.Qwen3VLMoeProcessingInfo):
    family = "qwen3_vl"


@stands_for(vllm_moe.Qwen3VLMoeForConditionalGeneration, _MoeInfo, _Processor)
class HiPruneQwen3VLMoe(Pruned, vllm_moe.Qwen3VLMoeForConditionalGeneration):
    tower_class = _Tower
