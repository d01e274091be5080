"""The models that lmms-eval finds through the entry-point group ``lmms_eval.models``."""


def manifests() -> list:
    """lmms-eval's manifests of our models; nothing heavy is imported until one is used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    classes = {
        "llava_hiprune": "hiprune.lmms.llava.LlavaHiPrune",
        "llava_hf_hiprune": "hiprune.lmms.llava_hf.LlavaHfHiPrune",
        "qwen2_5_vl_hiprune": "hiprune.lmms.qwen.Qwen25VLHiPrune",
    }
    chat = ModelManifest(model_id="hiprune_hf", chat_class_path="hiprune.lmms.hf.HiPruneHf")
    simple = [ModelManifest(model_id=name, simple_class_path=classes[name]) for name in classes]
    return [chat, *simple]
