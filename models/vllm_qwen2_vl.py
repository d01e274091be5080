"""vLLM's Qwen2-VL; see :mod:`hiprune.models.vllm_qwen`."""

from hiprune.models.vllm_qwen import Info, Processor, Pruned, Tower
from hiprune.models.vllm_tower import stands_for
from vllm.model_executor.models import qwen2_vl as vllm_qwen


class _Info(Info, vllm_qwen.Qwen2VLProcessingInfo):
    family = "qwen2_vl"


class _Processor(Processor, vllm_qwen.Qwen2VLMultiModalProcessor):
    pass


class _Tower(Tower, vllm_qwen.Qwen2VisionTransformer):
    pass


@stands_for(vllm_qwen.Qwen2VLForConditionalGeneration, _Info, _Processor)
class HiPruneQwen2VL(Pruned, vllm_qwen.Qwen2VLForConditionalGeneration):
    tower_class = _Tower
