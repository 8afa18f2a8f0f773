"""From Structs to schemas: shapes, strict decoding, CRDs."""
