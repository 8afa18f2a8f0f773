"""The libvirt domain: `types` knows XML, `build` knows choices."""
