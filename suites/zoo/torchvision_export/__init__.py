"""torchvision's ResNets exported to ONNX, in ONNX Runtime."""
