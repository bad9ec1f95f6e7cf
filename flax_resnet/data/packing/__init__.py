"""Pack any source into a new TFDS dataset: JPEGs of bounded size, stored for random access."""

from flax_resnet.data.packing.dataset import Packing, pack_dataset

__all__ = ["Packing", "pack_dataset"]
