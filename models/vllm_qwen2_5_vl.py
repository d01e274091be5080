"""vLLM's Qwen2.5-VL; see :mod:`hiprune.models.vllm_qwen`."""

from hiprune.models.vllm_qwen import Info, Processor, Pruned, Tower
from hiprune.models.vllm_tower import stands_for
from vllm.model_executor.models import qwen2_5_vl as vllm_qwen


class _Info(Info, vllm_qwen.Qwen2_5_VLProcessingInfo):
    family = "qwen2_5_vl"


class _Processor(Processor, vllm_qwen.Qwen2_5_VLMultiModalProcessor):
    pass


class _Tower(Tower, vllm_qwen.Qwen2_5_VisionTransformer):
    pass


@stands_for(vllm_qwen.Qwen2_5_VLForConditionalGeneration, _Info, _Processor)
class HiPruneQwen25VL(Pruned, vllm_qwen.Qwen2_5_VLForConditionalGeneration):
    tower_class = _Tower
