"""Gives back memory that only the start needed."""

from kit.memory import release_code_pages as release_code_pages
