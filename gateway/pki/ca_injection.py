"""Injection of the CA bundle into webhook configurations and APIServices.

Every replica checks all of them and patches differences, so that replicas need no coordination, and a replaced object
is repaired immediately.
"""

from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from api import names
from api.k8s.meta import Struct
from api.k8s.objects import K8sObject
from api.k8s.resource import Resource

NAME = "hyperlet-gateway"
"""Name of both webhook configurations."""
API_SERVICES = tuple(f"{version}.{names.SUBRESOURCE_GROUP}" for version in (names.VERSION, names.OLD_VERSION))


class ClientConfig(Struct):
    """How the API server calls a webhook; only the used fields."""

    caBundle: str | None = None


class Webhook(Struct):
    """A webhook in a configuration."""

    name: str = ""
    clientConfig: ClientConfig = ClientConfig()


def _registration(kind: str, plural: str) -> Resource:
    return Resource("admissionregistration.k8s.io", "v1", kind, plural, namespaced=False)


class _Configuration(K8sObject):
    webhooks: list[Webhook] | None = None


class MutatingWebhookConfiguration(_Configuration):
    """See admissionregistration.k8s.io/v1."""

    RESOURCE = _registration("MutatingWebhookConfiguration", "mutatingwebhookconfigurations")


class ValidatingWebhookConfiguration(_Configuration):
    """See admissionregistration.k8s.io/v1."""

    RESOURCE = _registration("ValidatingWebhookConfiguration", "validatingwebhookconfigurations")


class APIServiceSpec(Struct):
    """How the API server calls an aggregated API; only the used fields."""

    caBundle: str | None = None


class APIService(K8sObject):
    """See apiregistration.k8s.io/v1."""

    RESOURCE = Resource("apiregistration.k8s.io", "v1", "APIService", "apiservices", namespaced=False)

    spec: APIServiceSpec = APIServiceSpec()


Target = MutatingWebhookConfiguration | ValidatingWebhookConfiguration | APIService
TARGETS: tuple[tuple[type[Target], str], ...] = (
    (MutatingWebhookConfiguration, NAME),
    (ValidatingWebhookConfiguration, NAME),
    *((APIService, name) for name in API_SERVICES),
)


def patch(target: Target, bundle: bytes) -> list[dict[str, Any]]:
    """The JSON patch that sets the CA bundle (PEM); empty if already set."""
    text = b64encode(bundle).decode()
    if isinstance(target, APIService):
        return [] if target.spec.caBundle == text else [{"op": "add", "path": "/spec/caBundle", "value": text}]
    return list(_webhook_patch(target, text))


def _webhook_patch(target: _Configuration, text: str) -> Iterator[dict[str, Any]]:
    for index, webhook in enumerate(target.webhooks or ()):
        if webhook.clientConfig.caBundle != text:
            # JSON patch addresses list entries by index; the test operation detects a concurrent change of the list.
            yield {"op": "test", "path": f"/webhooks/{index}/name", "value": webhook.name}
            yield {"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": text}
