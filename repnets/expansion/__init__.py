"""Training branches around the convolutions of any plain CNN; `repnets.fuse` folds them. No torch is imported."""

STYLES = ("repvgg", "mobileone", "acb", "dbb", "orepa")
