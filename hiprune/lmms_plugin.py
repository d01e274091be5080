"""The models that lmms-eval finds through the entry-point group ``lmms_eval.models``."""


def manifests() -> list:
    """lmms-eval's manifests of our models; nothing heavy is imported until one is used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(
            model_id="llava_hiprune", simple_class_path="hiprune.lmms_llava.LlavaHiPrune"
        ),
    ]
