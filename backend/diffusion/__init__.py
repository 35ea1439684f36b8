"""The pretrained models that the methods use: registry, weights, loaders, guidance and LoRA."""
