"""fastgen: fast, reproducible sampling from generative models."""
