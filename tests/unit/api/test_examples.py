"""The examples in the documentation are valid."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from api.kinds.catalog import CATALOG
from api.network_attachments import NetworkAttachmentDefinition
from api.schema.codec import decode_strict
from api.validation.document import validate_document

EXAMPLES = Path(__file__).parents[3] / "examples"
DOCUMENTS = [
    pytest.param(document, id=f"{path.stem}-{document['kind']}-{document['metadata']['name']}")
    for path in sorted(EXAMPLES.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_an_example_has_no_fault(document: dict[str, Any]) -> None:
    if document["kind"] in [kind.name for kind in CATALOG.admitted()]:
        assert validate_document(document) == []
    elif document["kind"] == "NetworkAttachmentDefinition":
        decode_strict(NetworkAttachmentDefinition, document)


def test_every_network_of_an_example_is_defined_in_it() -> None:
    for path in EXAMPLES.glob("*.yaml"):
        documents = list(yaml.safe_load_all(path.read_text()))
        defined = {each["metadata"]["name"] for each in documents if each["kind"] == "NetworkAttachmentDefinition"}
        for machine in (each for each in documents if each["kind"] == "VirtualMachine"):
            networks = machine["spec"]["template"]["spec"].get("networks", [])
            assert {each["multus"]["networkName"] for each in networks if "multus" in each} <= defined, path
