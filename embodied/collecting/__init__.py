"""Collecting demonstrations: an expert records physics first, exact replay renders the data set afterwards."""
