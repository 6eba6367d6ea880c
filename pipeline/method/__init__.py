"""The method on arrays: schedule, sampler, reductions, what a request may ask for. NumPy and OpenCV only."""
