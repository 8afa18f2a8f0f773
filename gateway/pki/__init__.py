"""Certificate authorities, leaf certificates, and distribution of CA bundles."""
