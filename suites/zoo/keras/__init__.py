"""keras.applications.ResNet50 on TensorFlow."""
