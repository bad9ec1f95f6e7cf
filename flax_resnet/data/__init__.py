"""From a configuration to batches of uint8 images; the only room that imports TensorFlow and TFDS."""

import os

# Before TensorFlow is imported, which greets otherwise; decoding and resizing use no oneDNN.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
