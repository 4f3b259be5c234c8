"""Pooling and resampling over one to three axes; relevance is gathered, nothing is scattered."""
