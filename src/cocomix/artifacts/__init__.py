"""Folders that are whole or absent, here and at URLs."""

__all__: list[str] = []
