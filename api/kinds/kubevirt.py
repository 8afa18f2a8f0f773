"""The kinds of the API group kubevirt.io."""

from api import bridges, names, stored_defaults
from api.kinds.kind import Column, Kind
from api.kubevirt.kubevirt import KubeVirt
from api.kubevirt.migration import VirtualMachineInstanceMigration
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance
from api.validation import unsupported, validate

_AGE = Column("Age", ".metadata.creationTimestamp", "date")
_PHASE = Column("Phase", ".status.phase")
_READ = "get list watch"
_WRITE = f"{_READ} create update patch delete"
_ALL = f"{_WRITE} deletecollection"


def _condition(type: str, priority: int = 0) -> Column:
    return Column(type, f".status.conditions[?(@.type=='{type}')].status", priority=priority)


VIRTUAL_MACHINE = Kind(
    struct=VirtualMachine,
    older_versions=(names.OLD_VERSION,),
    short_names=("vm", "vms"),
    columns=(_AGE, Column("Status", ".status.printableStatus"), _condition("Ready")),
    validate=validate.validate_vm,
    warn=validate.warnings,
    supported=unsupported.VM,
    vmi_spec="spec.template.spec",
    owned_metadata=("metadata", "spec.template.metadata"),
    defaults=stored_defaults.vm_spec,
    finalizer=names.FINALIZER_VM,
    controller="reconciles",
    rights={
        "hyperlet-controller": {"": "list watch patch", "status": "patch", "finalizers": "update"},
        "hyperlet-gateway": {"": "get patch", "status": "patch"},
        "kubevirt.io:admin": {"": _ALL},
        "kubevirt.io:edit": {"": _WRITE},
        "kubevirt.io:view": {"": _READ},
    },
)

VIRTUAL_MACHINE_INSTANCE = Kind(
    struct=VirtualMachineInstance,
    older_versions=(names.OLD_VERSION,),
    short_names=("vmi", "vmis"),
    columns=(
        _AGE,
        _PHASE,
        Column("IP", ".status.interfaces[0].ipAddress"),
        Column("NodeName", ".status.nodeName"),
        _condition("Ready"),
        _condition("LiveMigratable", priority=1),
        _condition("Paused", priority=1),
    ),
    has_status=False,
    validate=validate.validate_vmi,
    warn=validate.vmi_warnings,
    supported=unsupported.VMI,
    fixed_spec="change spec.template of its VirtualMachine, or delete the VirtualMachineInstance",
    vmi_spec="spec",
    created_unchecked=True,
    defaults=stored_defaults.vmi_spec,
    finalizer=names.FINALIZER_VMI,
    controller="reconciles",
    rights={
        "hyperlet-controller": {"": "list watch create patch delete", "finalizers": "update"},
        "hyperlet-gateway": {"": "get patch"},
        "hyperlet-handler": {"": "list watch patch"},
        "kubevirt.io:admin": {"": _ALL},
        "kubevirt.io:edit": {"": _WRITE},
        "kubevirt.io:view": {"": _READ},
    },
)

MIGRATION = Kind(
    struct=VirtualMachineInstanceMigration,
    older_versions=(names.OLD_VERSION,),
    short_names=("vmim", "vmims"),
    columns=(_PHASE, Column("VMI", ".spec.vmiName")),
    validate=validate.validate_migration,
    fixed_spec="create another VirtualMachineInstanceMigration",
    finalizer=names.FINALIZER_MIGRATION,
    rights={
        "kubevirt.io:admin": {"": _READ},
        "kubevirt.io:edit": {"": _READ},
        "kubevirt.io:view": {"": _READ},
        "kubevirt.io:migrate": {"": _ALL},
    },
)

KUBEVIRT = Kind(
    struct=KubeVirt,
    older_versions=(names.OLD_VERSION,),
    short_names=("kv", "kvs"),
    columns=(_AGE, _PHASE),
    validate=validate.validate_kubevirt,
    supported=unsupported.KUBEVIRT,
    annotation_faults=bridges.faults,
    owned_metadata=(),
    created_unchecked=True,
    controller="reconciles",
    rights={
        "hyperlet-controller": {"": "list watch", "status": "patch"},
        "hyperlet-gateway": {"": "list watch"},
        "hyperlet-handler": {"": "list watch"},
        "kubevirt.io:edit": {"": "get list"},
    },
)

KINDS = (VIRTUAL_MACHINE, VIRTUAL_MACHINE_INSTANCE, MIGRATION, KUBEVIRT)
