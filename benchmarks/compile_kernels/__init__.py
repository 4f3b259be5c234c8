"""Every kernel compiled at its production tiles, without a GPU."""
