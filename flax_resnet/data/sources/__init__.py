"""Sources of images; each is a dataset split with random access."""
