"""Augmentation inside the compiled step: from uint8 batches to float32 images and soft labels, on the device."""

from flax_resnet.augment.apply import evaluation_images, evaluation_views, training_batch

__all__ = ["evaluation_images", "evaluation_views", "training_batch"]
