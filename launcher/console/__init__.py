"""Serial console, VNC and screenshots of the guest."""
