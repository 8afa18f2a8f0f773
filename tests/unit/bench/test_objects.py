from bench import objects


def test_every_disk_has_a_volume() -> None:
    made = objects.vmi("a", empty_disks=2, cloud_init=True)
    names = [disk["name"] for disk in made["spec"]["domain"]["devices"]["disks"]]
    assert names == [volume["name"] for volume in made["spec"]["volumes"]] == ["root", "empty0", "empty1", "cloudinit"]


def test_guest_without_disk_and_nic_declares_neither() -> None:
    spec = objects.vmi("a", image=None, nic=False)["spec"]
    assert "volumes" not in spec
    assert "networks" not in spec
    assert spec["domain"]["devices"] == {"disks": [], "autoattachPodInterface": False}


def test_vm_template_is_a_copy() -> None:
    instance = objects.vmi("a")
    made = objects.vm("a", instance)
    instance["spec"]["domain"]["cpu"]["cores"] = 9
    assert made["spec"]["template"]["spec"]["domain"]["cpu"]["cores"] == 1


def test_bare_pod_copies_image_resources_and_user_without_gate_and_volumes() -> None:
    compute = {
        "name": "compute",
        "image": "launcher:1",
        "resources": {"requests": {"memory": "150Mi"}, "limits": {"devices.kubevirt.io/tun": "1"}},
        "securityContext": {"runAsUser": 107},
        "volumeMounts": [{"name": "hyperlet", "mountPath": "/run/hyperlet"}],
        "command": ["python3", "-m", "launcher"],
    }
    launcher = {
        "spec": {
            "containers": [compute],
            "readinessGates": [{"conditionType": "x"}],
            "volumes": [{"name": "hyperlet", "emptyDir": {}}],
            "securityContext": {"fsGroup": 107},
            "nodeName": "node1",
            "nodeSelector": {"kubevirt.io/schedulable": "true", "kubernetes.io/hostname": "node1"},
        }
    }
    spec = objects.bare_pod("bare", launcher)["spec"]
    (sleeper,) = spec["containers"]
    assert sleeper["image"] == "launcher:1"
    assert sleeper["resources"] == compute["resources"]
    assert sleeper["securityContext"] == {"runAsUser": 107}
    assert "volumeMounts" not in sleeper
    assert not {"readinessGates", "volumes", "nodeName"} & spec.keys()
    assert spec["nodeSelector"] == {"kubevirt.io/schedulable": "true"}
