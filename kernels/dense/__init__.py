"""Dense layers as strided matrix products."""
