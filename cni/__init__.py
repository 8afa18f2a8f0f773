"""cnv-bridge and cnv-tuning: CNI plugins that connect pods and VMs to host bridges.

The container runtime runs a small static client (`client.c`); a daemon (`python -m cni`) does the work. See
`docs/cni.md` for the fields of the configuration.
"""
