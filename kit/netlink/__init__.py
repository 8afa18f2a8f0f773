"""The kernel's network configuration by netlink, without a library: links, addresses, routes, bridges, nftables.

One stack for handler and CNI daemon; why not pyroute2: docs/decisions/0018-own-netlink-stack.md.
"""
