"""From a configuration to batches of uint8 images; the only room that imports TensorFlow and TFDS."""

import os

# Before TensorFlow is imported, which otherwise greets, and says in many lines what we say in one; decoding and
# resizing use no oneDNN.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
