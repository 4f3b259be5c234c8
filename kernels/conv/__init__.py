"""Convolutions of one to three dimensions as implicit products; their adjoints gather."""
