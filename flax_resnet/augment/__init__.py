"""From uint8 batches to float images and soft labels, on the device, inside the compiled step."""

from flax_resnet.augment.apply import evaluation_images, evaluation_views, training_batch

__all__ = ["evaluation_images", "evaluation_views", "training_batch"]
