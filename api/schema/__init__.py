"""Schemas of Structs: shapes, strict decoding, CRDs."""
