"""The models that lmms-eval finds through the entry-point group ``lmms_eval.models``."""


def manifests() -> list:
    """lmms-eval's manifests of our models; nothing heavy is imported until one is used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    classes = {
        "llava_hiprune": "hiprune.lmms.llava.LlavaHiPrune",
        "llava_hf_hiprune": "hiprune.lmms.llava_hf.LlavaHfHiPrune",
        "qwen2_5_vl_hiprune": "hiprune.lmms.qwen.Qwen25VLHiPrune",
    }
    return [ModelManifest(model_id=name, simple_class_path=path) for name, path in classes.items()]
