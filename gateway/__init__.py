"""The gateway: admission webhooks, the aggregated API `subresources.kubevirt.io`, and their certificates."""
