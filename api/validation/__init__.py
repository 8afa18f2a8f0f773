"""Validation rules beyond the schema."""
