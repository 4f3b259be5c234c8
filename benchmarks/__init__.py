"""The benchmark suite: side by side, interleaved, medians; see README.md in this folder."""
