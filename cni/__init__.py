"""cnv-bridge and cnv-tuning: CNI plugins that join pods and VMs to host bridges.

The container runtime starts a tiny static client (`client.c`); a warm daemon (`python -m cni`) does the work.
`docs/cni.md` tells what they do, field by field.
"""
