"""The libvirt domain: `types` declares the XML, `build` derives it from the VMI."""
