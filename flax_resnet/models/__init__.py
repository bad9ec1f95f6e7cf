"""Linen modules by name: layers, blocks, the ResNet, its variants as rows of data, baselines, and the registry."""

from flax_resnet.models.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
