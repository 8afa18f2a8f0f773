"""Owner references: which object controls another. The UID counts; names and labels prove nothing."""

from api import names
from api.k8s.meta import Json, ObjectMeta, OwnerReference


def reference(kind: str, owner: ObjectMeta) -> Json:
    """The reference that makes an object of the group kubevirt.io the controller of another."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def controller_of(metadata: ObjectMeta) -> OwnerReference | None:
    """The reference of the object's controller, of which the API server allows only one; None if it has none."""
    return next((owner for owner in metadata.ownerReferences or () if owner.controller), None)


def controls(owner: ObjectMeta, metadata: ObjectMeta) -> bool:
    """Whether the object is controlled by `owner`."""
    controller = controller_of(metadata)
    return controller is not None and controller.uid == owner.uid
