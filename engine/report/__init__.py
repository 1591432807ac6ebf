"""Writes reports of runs and of comparisons: one HTML file each, which needs no network.

Python modules gather the data; the files in `templates/` show it, with the chart library in `vendor/`.
"""
