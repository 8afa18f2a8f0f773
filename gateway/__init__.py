"""The gateway: admission, the aggregated API `subresources.kubevirt.io`, and the certificates of both."""
