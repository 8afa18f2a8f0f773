from api import names
from api.k8s import owners
from api.k8s.meta import ObjectMeta, OwnerReference

VM = ObjectMeta(name="web", namespace="default", uid="vm-uid")


def owner(uid: str, controller: bool | None = None) -> OwnerReference:
    return OwnerReference(apiVersion="v1", kind="ConfigMap", name="web", uid=uid, controller=controller)


def test_controller_is_the_reference_marked_so() -> None:
    assert owners.controller_of(VM) is None
    other, own = owner("other"), owner("vm-uid", True)
    assert owners.controller_of(ObjectMeta(name="a", ownerReferences=[other])) is None
    assert owners.controller_of(ObjectMeta(name="a", ownerReferences=[other, own])) == own


def test_only_the_uid_proves_control() -> None:
    assert owners.controls(VM, ObjectMeta(name="a", ownerReferences=[owner("vm-uid", True)]))
    for references in (None, [owner("vm-uid")], [owner("vm-uid", False)], [owner("earlier", True)]):
        assert not owners.controls(VM, ObjectMeta(name="web", ownerReferences=references))


def test_reference_makes_a_controller() -> None:
    reference = owners.reference(names.KIND_VM, VM)
    assert reference == {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "web", "uid": "vm-uid", "controller": True,
        "blockOwnerDeletion": True,
    }  # fmt: skip
    assert owners.controls(VM, ObjectMeta(name="a", ownerReferences=[OwnerReference(**reference)]))
