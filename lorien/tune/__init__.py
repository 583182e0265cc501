"""Measuring candidates."""
