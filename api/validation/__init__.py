"""Rules for what may be stored, beyond what the schema says."""
