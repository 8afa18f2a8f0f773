"""Names in the API: groups, labels, annotations, conditions, reasons, phases.

They are the names of the KubeVirt API, for compatibility with its clients.
"""

from typing import Final

# API groups, versions, resources
GROUP: Final = "kubevirt.io"
VERSION: Final = "v1"
OLD_VERSION: Final = "v1alpha3"
API_VERSION: Final = "kubevirt.io/v1"
SUBRESOURCE_GROUP: Final = "subresources.kubevirt.io"

KIND_VM: Final = "VirtualMachine"
KIND_VMI: Final = "VirtualMachineInstance"
KIND_MIGRATION: Final = "VirtualMachineInstanceMigration"
KIND_KUBEVIRT: Final = "KubeVirt"
PLURAL_VM: Final = "virtualmachines"
PLURAL_VMI: Final = "virtualmachineinstances"
PLURAL_MIGRATION: Final = "virtualmachineinstancemigrations"
PLURAL_KUBEVIRT: Final = "kubevirts"

# hyperlet's namespace and objects
NAMESPACE: Final = "kubevirt"
CONTROLLER_LEASE: Final = "virt-controller"
FIELD_MANAGER: Final = "hyperlet"

# The gateway's Service, and the subjects of certificates
GATEWAY_SERVICE: Final = "hyperlet-gateway"
GATEWAY_AUDIENCE: Final = "hyperlet"
# The Secret with the CAs, and the ConfigMap with the CA bundle of the gateway's serving certificate
AUTHORITIES: Final = "hyperlet-ca"
SERVING_BUNDLE: Final = "serving.crt"
HANDLER_ACCOUNT: Final = "hyperlet-handler"
URI_GATEWAY: Final = "hyperlet://gateway"


def node_uri(node: str) -> str:
    """The URI SAN of a handler's certificate."""
    return f"hyperlet://node/{node}"


def node_dns_name(node: str) -> str:
    """The DNS SAN of a handler's certificate, verified by TLS clients. Never resolved."""
    return f"{node}.node.hyperlet"


# Labels
LABEL_APP: Final = "kubevirt.io"
APP_LAUNCHER: Final = "virt-launcher"
APP_HANDLER: Final = "virt-handler"
LABEL_CREATED_BY: Final = "kubevirt.io/created-by"
LABEL_NODE_NAME: Final = "kubevirt.io/nodeName"
LABEL_VM_NAME: Final = "vm.kubevirt.io/name"
LABEL_VMI_ID: Final = "vmi.kubevirt.io/id"
LABEL_SCHEDULABLE: Final = "kubevirt.io/schedulable"
LABEL_KVM: Final = "hyperlet/kvm"
LABEL_MIGRATION_JOB: Final = "kubevirt.io/migrationJobUID"
LABEL_MIGRATION_TARGET_NODE: Final = "kubevirt.io/migrationTargetNodeName"
LABEL_OUTDATED_LAUNCHER: Final = "kubevirt.io/outdatedLauncherImage"
LABEL_TEMPLATE: Final = "hyperlet/template"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"

# Annotations
ANNOTATION_DOMAIN: Final = "kubevirt.io/domain"
ANNOTATION_HEARTBEAT: Final = "kubevirt.io/heartbeat"
ANNOTATION_KVM: Final = "hyperlet/kvm"
ANNOTATION_MIGRATION_JOB: Final = "kubevirt.io/migrationJobName"
ANNOTATION_DEFAULT_CONTAINER: Final = "kubectl.kubernetes.io/default-container"
ANNOTATION_GENERATION: Final = "kubevirt.io/vm-generation"
ANNOTATION_TEMPLATE: Final = "hyperlet/template-hash"
ANNOTATION_FENCED: Final = "hyperlet/fenced"
ANNOTATION_CARRIED: Final = "hyperlet/carried"

# Written by hyperlet only on VMs, VMIs and pods, regardless of RBAC.
OWNED_LABELS: Final = frozenset(
    {
        LABEL_NODE_NAME,
        LABEL_CREATED_BY,
        LABEL_MIGRATION_JOB,
        LABEL_MIGRATION_TARGET_NODE,
        LABEL_OUTDATED_LAUNCHER,
        LABEL_SCHEDULABLE,
        LABEL_VMI_ID,
    }
)
OWNED_ANNOTATIONS: Final = frozenset(
    {ANNOTATION_CARRIED, ANNOTATION_FENCED, ANNOTATION_GENERATION, ANNOTATION_MIGRATION_JOB, ANNOTATION_TEMPLATE}
)
# On the KubeVirt object: comma-separated bridge name patterns
ANNOTATION_BRIDGES_ALLOWED: Final = "hyperlet/allowed-bridges"
ANNOTATION_BRIDGES_DENIED: Final = "hyperlet/denied-bridges"

# Finalizers
FINALIZER_VM: Final = "kubevirt.io/virtualMachineControllerFinalize"
FINALIZER_VMI: Final = "foregroundDeleteVirtualMachine"
FINALIZER_MIGRATION: Final = "kubevirt.io/migrationJobFinalize"

# The launcher pod
LAUNCHER_PREFIX: Final = "virt-launcher-"
COMPUTE_CONTAINER: Final = "compute"
READINESS_GATE: Final = "kubevirt.io/virtual-machine-unpaused"
LAUNCHER_UID: Final = 107
GRACE_MARGIN_SECONDS: Final = 30
MAX_GRACE_SECONDS: Final = 86400
DEVICE_KVM: Final = "devices.kubevirt.io/kvm"
DEVICE_TUN: Final = "devices.kubevirt.io/tun"
DEVICE_VHOST_NET: Final = "devices.kubevirt.io/vhost-net"
DEVICES_PER_NODE: Final = 1000

# VMI phases; UNSET before the first reconciliation
PHASE_UNSET: Final = ""
PHASE_PENDING: Final = "Pending"
PHASE_SCHEDULING: Final = "Scheduling"
PHASE_SCHEDULED: Final = "Scheduled"
PHASE_RUNNING: Final = "Running"
PHASE_SUCCEEDED: Final = "Succeeded"
PHASE_FAILED: Final = "Failed"
PHASE_UNKNOWN: Final = "Unknown"
FINAL_PHASES: Final = frozenset({PHASE_SUCCEEDED, PHASE_FAILED})

# Condition types
CONDITION_READY: Final = "Ready"
CONDITION_SYNCHRONIZED: Final = "Synchronized"
CONDITION_PAUSED: Final = "Paused"
CONDITION_AGENT_CONNECTED: Final = "AgentConnected"
CONDITION_LIVE_MIGRATABLE: Final = "LiveMigratable"
CONDITION_DISRUPTION_TARGET: Final = "DisruptionTarget"
CONDITION_FAILURE: Final = "Failure"
CONDITION_RESTART_REQUIRED: Final = "RestartRequired"
CONDITION_POD_SCHEDULED: Final = "PodScheduled"
# Not in KubeVirt: software emulation is in use, because KVM is unavailable on the node.
CONDITION_EMULATED: Final = "SoftwareEmulation"
# Not in KubeVirt, on the KubeVirt CR: whether the API server restricts each handler to its own node.
CONDITION_NODE_RESTRICTION: Final = "NodeRestriction"
TRUE: Final = "True"
FALSE: Final = "False"
UNKNOWN: Final = "Unknown"

# VM printableStatus, in order of precedence
STATUS_TERMINATING: Final = "Terminating"
STATUS_STOPPING: Final = "Stopping"
STATUS_MIGRATING: Final = "Migrating"
STATUS_PAUSED: Final = "Paused"
STATUS_RUNNING: Final = "Running"
STATUS_PVC_NOT_FOUND: Final = "ErrorPvcNotFound"
STATUS_UNSCHEDULABLE: Final = "ErrorUnschedulable"
STATUS_WAITING_FOR_VOLUME: Final = "WaitingForVolumeBinding"
STATUS_ERR_IMAGE_PULL: Final = "ErrImagePull"
STATUS_IMAGE_PULL_BACKOFF: Final = "ImagePullBackOff"
STATUS_STARTING: Final = "Starting"
STATUS_CRASH_LOOP: Final = "CrashLoopBackOff"
STATUS_STOPPED: Final = "Stopped"
STATUS_UNKNOWN: Final = "Unknown"

# Run strategies
RUN_ALWAYS: Final = "Always"
RUN_HALTED: Final = "Halted"
RUN_MANUAL: Final = "Manual"
RUN_RERUN_ON_FAILURE: Final = "RerunOnFailure"
RUN_ONCE: Final = "Once"

# Actions in VirtualMachine.status.stateChangeRequests
ACTION_START: Final = "Start"
ACTION_STOP: Final = "Stop"

# Eviction strategies
EVICTION_NONE: Final = "None"
EVICTION_LIVE_MIGRATE: Final = "LiveMigrate"
EVICTION_LIVE_MIGRATE_IF_POSSIBLE: Final = "LiveMigrateIfPossible"
EVICTION_EXTERNAL: Final = "External"

# Reasons of conditions and Events
REASON_CREATED: Final = "SuccessfulCreate"
REASON_ADOPTED: Final = "AdoptedInstance"
REASON_DELETED: Final = "SuccessfulDelete"
REASON_FAILED_CREATE: Final = "FailedCreate"
REASON_STARTED: Final = "Started"
REASON_STOPPED: Final = "Stopped"
REASON_CRASHED: Final = "Crashed"
REASON_TERMINATED: Final = "Terminated"
REASON_PAUSED_BY_USER: Final = "PausedByUser"
REASON_PAUSED_IO_ERROR: Final = "PausedIOError"
REASON_POD_NOT_EXISTS: Final = "PodNotExists"
REASON_GUEST_NOT_RUNNING: Final = "GuestNotRunning"
REASON_VMI_NOT_EXISTS: Final = "VMINotExists"
REASON_UNSCHEDULABLE: Final = "Unschedulable"
REASON_ERR_IMAGE_PULL: Final = "ErrImagePull"
REASON_IMAGE_PULL_BACKOFF: Final = "ImagePullBackOff"
# Kubelet reasons for a container whose image or image volume cannot be pulled (ImagePullBackOff between attempts);
# the last is hyperlet's own.
REASONS_NO_IMAGE: Final = frozenset(
    {
        REASON_ERR_IMAGE_PULL,
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
        "ImagePullFailed",
    }
)
REASON_FAILED_PVC_NOT_FOUND: Final = "FailedPvcNotFound"
REASON_NETWORK_NOT_FOUND: Final = "NetworkAttachmentDefinitionNotFound"
REASON_SYNC_FAILED: Final = "SyncFailed"
REASON_LAUNCHER_CUT_OFF: Final = "LauncherCutOff"
REASON_NO_PROGRESS: Final = "NoProgress"
REASON_INVALID: Final = "InvalidObject"
REASON_NODE_NOT_READY: Final = "NodeNotReady"
REASON_LAUNCHER_NOT_ENDED: Final = "LauncherNotEnded"

# Reasons of a Fault in api.validation.validate; the first five are those of Kubernetes' own field errors
FAULT_INVALID: Final = "FieldValueInvalid"
FAULT_REQUIRED: Final = "FieldValueRequired"
FAULT_DUPLICATE: Final = "FieldValueDuplicate"
FAULT_NOT_SUPPORTED: Final = "FieldValueNotSupported"
FAULT_FORBIDDEN: Final = "FieldValueForbidden"
FAULT_UNKNOWN: Final = "FieldUnknown"
FAULT_TYPE: Final = "FieldValueTypeInvalid"

# Values of status.interfaces[].infoSource
INFO_DOMAIN: Final = "domain"
INFO_GUEST_AGENT: Final = "guest-agent"
INFO_MULTUS: Final = "multus-status"
