"""What things are: Structs of every kind, defaults, validation, CRD schemas, names, errors. Pure: no I/O, no clock."""
