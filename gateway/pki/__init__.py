"""Certificate authorities, the certificates they sign, and who is told to trust them."""
