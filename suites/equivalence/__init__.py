"""Whether implementations compute the function that the spec and the weights define."""
