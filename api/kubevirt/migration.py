"""VirtualMachineInstanceMigration: the wish to move a running VMI to another node."""

from typing import Literal

from api import names
from api.k8s.meta import Condition, Object, Struct, Time
from api.k8s.resource import Resource
from api.kubevirt.migration_state import VirtualMachineInstanceMigrationState


class VirtualMachineInstanceMigrationTarget(Struct):
    """The target's side of a migration between clusters."""

    migrationID: str
    """Identifier of the migration, shared by both clusters."""


class VirtualMachineInstanceMigrationSource(Struct):
    """The source's side of a migration between clusters."""

    connectURL: str
    """Address of the other cluster."""
    migrationID: str
    """Identifier of the migration, shared by both clusters."""


class VirtualMachineInstanceMigrationSpec(Struct):
    """The VMI to migrate and the target."""

    addedNodeSelector: dict[str, str] | None = None
    """Labels that the target node must have in addition to the VMI's nodeSelector."""
    priority: str | None = None
    """Order among waiting migrations."""
    receive: VirtualMachineInstanceMigrationTarget | None = None
    """This cluster is the target of a migration between clusters."""
    sendTo: VirtualMachineInstanceMigrationSource | None = None
    """This cluster is the source of a migration between clusters."""
    vmiName: str | None = None
    """Name of the VMI."""


class VirtualMachineInstanceMigrationCondition(Condition):
    """A condition of a migration."""


class VirtualMachineInstanceMigrationPhaseTransitionTimestamp(Struct):
    """When a phase was reached."""

    phase: str | None = None
    """The phase."""
    phaseTransitionTimestamp: Time | None = None
    """The time."""


class VirtualMachineInstanceMigrationStatus(Struct):
    """Progress of a migration."""

    conditions: list[VirtualMachineInstanceMigrationCondition] | None = None
    """Conditions of the object."""
    migrationState: VirtualMachineInstanceMigrationState | None = None
    """Details, as in the VMI."""
    phase: str | None = None
    """Pending, Scheduling, Scheduled, PreparingTarget, TargetReady, Running, Succeeded or Failed."""
    phaseTransitionTimestamps: list[VirtualMachineInstanceMigrationPhaseTransitionTimestamp] | None = None
    """When each phase was reached."""
    synchronizationAddresses: list[str] | None = None
    """Addresses for a migration between clusters."""


class VirtualMachineInstanceMigration(Object):
    """A request to migrate a running VMI to another node. Deleting it cancels the migration."""

    RESOURCE = Resource(names.GROUP, names.VERSION, names.KIND_MIGRATION, names.PLURAL_MIGRATION)

    apiVersion: Literal["kubevirt.io/v1", "kubevirt.io/v1alpha3"]
    """API group and version."""
    kind: Literal["VirtualMachineInstanceMigration"]
    """Kind of the object."""
    spec: VirtualMachineInstanceMigrationSpec
    """The VMI to migrate."""
    status: VirtualMachineInstanceMigrationStatus | None = None
    """Progress. Written by hyperlet only."""
