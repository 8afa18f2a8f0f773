"""API types of every kind, defaults, validation, CRD schemas, names and errors. Pure: no I/O, no clock."""
