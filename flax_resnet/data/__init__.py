"""Load batches of uint8 images as configured. No other package imports TensorFlow or TFDS."""

import os

# Set these before TensorFlow is imported: they silence its banner and its long error logs, which our one-line
# messages replace. Decoding and resizing do not use oneDNN.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
