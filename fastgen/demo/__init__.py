"""What `make demo` shows: two models sampled by PyTorch and by fastgen, and a page with the pictures."""
