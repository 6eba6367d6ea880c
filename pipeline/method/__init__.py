"""The method on arrays: schedule, sampler, reductions, request options. NumPy and OpenCV only."""
