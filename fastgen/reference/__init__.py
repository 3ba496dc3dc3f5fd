"""The specification: every op in plain PyTorch, with the arguments that the op has checked."""
