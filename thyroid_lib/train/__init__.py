"""The training loop, one run of it with its tables, augmentation and devices."""
