"""A plain ResNet in Flax, which has no zoo of its own."""
