"""What the user names, read with suspicion: files, data sources, models, labels, devices.

Imports the public face, `data`, `models` and what is below them; neither `batch` nor `cli`.
"""
