"""Recurrent layers: hidden states forward, relevance back, each layer a few launches."""
