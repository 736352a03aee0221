"""The networks, and the frameworks that run them."""
