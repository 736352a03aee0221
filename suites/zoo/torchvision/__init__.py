"""torchvision's ResNets, eager and compiled."""
