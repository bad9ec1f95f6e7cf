"""No policy."""

from flax_resnet.augment.augment_section import PolicyRow

ROWS = (PolicyRow(name="none", help="no policy", apply=lambda key, images, section: images),)
