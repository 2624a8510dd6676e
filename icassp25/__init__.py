"""The CIFAR-100 experiment: configuration, data, augmentation, models, training loop, run log."""
