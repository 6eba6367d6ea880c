"""The networks in PyTorch, their weights, and the reference pipeline."""
