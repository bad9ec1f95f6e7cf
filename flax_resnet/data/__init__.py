"""From a configuration to batches of uint8 images; the only room that imports TensorFlow and TFDS."""
