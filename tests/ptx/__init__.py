"""Execute the PTX that Triton compiled, on the CPU: compiled kernels without a GPU (README.md)."""
