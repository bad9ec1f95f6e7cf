"""Load batches of uint8 images as configured. No other package imports TensorFlow or TFDS."""
