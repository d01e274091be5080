"""The models that lmms-eval finds through the entry-point group ``lmms_eval.models``."""


def manifests() -> list:
    """lmms-eval's manifests of our models; nothing heavy is imported until one is used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    classes = {
        "llava_hiprune": "hiprune.lmms.llava.LlavaHiPrune",
        "llava_hf_hiprune": "hiprune.lmms.llava_hf.LlavaHfHiPrune",
        "qwen2_5_vl_hiprune": "hiprune.lmms.qwen.Qwen25VLHiPrune",
    }
    in_vllm = {
        "llava_hf_hiprune_vllm": "hiprune.lmms.vllm.LlavaHfInVllm",
        "qwen2_5_vl_hiprune_vllm": "hiprune.lmms.vllm.Qwen25VLInVllm",
    }
    chat = {
        "hiprune_hf": "hiprune.lmms.hf.HiPruneHf",
        "hiprune_hf_vllm": "hiprune.lmms.vllm.HfInVllm",
    }
    simple = classes | in_vllm
    return [
        *(ModelManifest(model_id=name, chat_class_path=chat[name]) for name in chat),
        *(ModelManifest(model_id=name, simple_class_path=simple[name]) for name in simple),
    ]
