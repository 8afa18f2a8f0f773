"""The Structs of the API group kubevirt.io."""
