"""The kind of the API group k8s.cni.cncf.io, whose CRD is shared with Multus."""

from api.kinds.kind import Kind
from api.network_attachments import NetworkAttachmentDefinition

# Identical to the CRD of Multus, so that the order of installation does not matter.
NETWORK_ATTACHMENT_DEFINITION = Kind(
    struct=NetworkAttachmentDefinition,
    singular="network-attachment-definition",
    short_names=("net-attach-def", "net-attach-defs"),
    categories=(),
    has_status=False,
    required=(),
    controller="watches",
    rights={
        "hyperlet-controller": {"": "list watch"},
        "hyperlet-handler": {"": "get"},
    },
)

KINDS = (NETWORK_ATTACHMENT_DEFINITION,)
