"""Folders that are whole or absent, here and at URLs."""
