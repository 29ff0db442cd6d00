"""How lmms-eval finds the model: the entry point `trio_ray` of the group `lmms_eval.models` calls `manifest`."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore[import-not-found]


def manifest() -> ModelManifest:
    """The model `trio_ray` of `lmms_eval --model trio_ray`."""
    return ModelManifest(model_id="trio_ray", simple_class_path="trio_ray.evaluate.lmms_eval.model.TrioRay")
